"""What a policy loss is: a class that has the term of each bit, how terms are averaged, and the settings it takes."""

import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, NamedTuple

from torch import Tensor

from rl.algorithm.losses.averaging import Aggregation
from rl.algorithm.losses.inputs import PolicyInputs
from rl.algorithm.losses.settings import ConflictingSetting, LossSettings, RatioLevel


class Terms(NamedTuple):
    """What is minimised of each bit, shaped as `logp`, and which bits were bounded from below and from above."""

    loss: Tensor
    low: Tensor | None = None
    """bool; None: the loss does not say"""
    high: Tensor | None = None


class Loss(ABC):
    """A policy loss. Subclasses live in a file each and are listed in rl/algorithm/losses/registry.py; no other file
    knows one by its name."""

    name: str
    """as `algorithm.loss` has it"""
    paper: ClassVar[str]
    """its short name and arXiv number"""
    aggregation: Aggregation
    """how terms are averaged, see `aggregate`"""
    levels: ClassVar[tuple[RatioLevel, ...]] = typing.get_args(RatioLevel)
    """what its ratio may stand for, the default first"""
    takes: ClassVar[Mapping[str, str]]
    """which of epsilon, epsilon_high and delta it takes: the setting → what it is here and its default, for
    docs/config.md"""

    def load(self, folder: Path | None = None) -> None:  # noqa: B027
        """Loads what it needs before its first use; nothing, but for a plug-in. folder: the recipe's."""

    @abstractmethod
    def terms(self, inputs: PolicyInputs, ratio: Tensor, settings: LossSettings) -> Terms:
        """The term of each bit, to be minimised.

        ratio: π/π_old of each bit, as `importance_ratio` gives it. settings: with their level filled in.
        """

    def checked(self, settings: LossSettings) -> LossSettings:
        """The settings with the ratio level filled in. Raises ConflictingSetting for what does not go together."""
        level = settings.level or self.levels[0]
        if level not in self.levels:
            needed = " or ".join(self.levels)
            raise ConflictingSetting("ratio_level", f"is {level}; {self.name} needs {needed} (or null).")
        taken = " and ".join(self.takes)
        for key in ("epsilon", "epsilon_high", "delta"):
            if key not in self.takes and getattr(settings, key) is not None:
                raise ConflictingSetting(key, f"has no use in {self.name}, which takes {taken}; leave it null.")
        return replace(settings, level=level)


def clamped(ratio: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """The ratio within [low, high], each a number or a tensor, which torch's own takes only two of a kind of."""
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return ratio.clamp(min=low).clamp(max=high)
    return ratio.clamp(low, high)
