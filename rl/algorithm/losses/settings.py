"""What a recipe says of the policy loss, as one value."""

import typing
from dataclasses import dataclass
from typing import Literal

from rl.algorithm.bernoulli import KLEstimator
from uniar.errors import UserError

RatioLevel = Literal["bit", "visual_token", "sequence"]
KLKind = Literal["exact"] | KLEstimator


class ConflictingSetting(UserError):
    """Settings of a loss that do not go together.

    key: the one of `algorithm` to change. found: the sentence that begins with it, without it.
    """

    def __init__(self, key: str, found: str) -> None:
        super().__init__(f"algorithm.{key} {found}")
        self.key, self.found = key, found


@dataclass(frozen=True)
class LossSettings:
    """The settings of `policy_loss`. None: the loss's own default. Raises UserError for an unknown ratio level."""

    loss: str
    """its name, or a plug-in's"""
    level: RatioLevel | None = None
    """what one ratio stands for: see `importance_ratio`"""
    epsilon: float | None = None
    """see `takes` of the loss, as for the next two"""
    epsilon_high: float | None = None
    delta: float | None = None
    centred: bool = False
    """take a ratio that is a mean over bits without the drift that it has from distance alone"""
    importance_cap: float | None = None
    """largest ratio (None: none). Where the old log-probabilities are the rollout's own, the ratio also carries the
    numerical mismatch between rollout and update: it is then their truncated importance weight."""
    beta: float = 0.0
    """weight of the KL term to the reference, averaged as the policy term is"""
    kl: KLKind = "exact"
    entropy_coef: float = 0.0
    """weight of the entropy, averaged as the policy term is and subtracted"""

    def __post_init__(self) -> None:
        if self.level is not None and self.level not in (levels := typing.get_args(RatioLevel)):
            raise UserError(f"algorithm.ratio_level is {self.level!r}, expected one of {', '.join(levels)}.")
