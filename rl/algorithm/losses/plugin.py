"""A loss of one's own, named in a recipe: `algorithm.loss: path/to/file.py:function`."""

import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from rl.algorithm.losses.averaging import Aggregation
from rl.algorithm.losses.inputs import PolicyInputs
from rl.algorithm.losses.loss import Loss, Terms
from rl.algorithm.losses.settings import LossSettings
from uniar.errors import UserError
from uniar.reading.plugins import described, load_plugin

_TAKEN = "as the function takes it, null: None"


class PluginLoss(Loss):
    """A function (inputs: PolicyInputs, ratio: Tensor, settings: LossSettings) → the term of each bit, shaped and typed
    as `inputs.logp`. Its attribute `aggregation` says how terms are averaged, "sample" without one.

    Whatever is wrong with it is a UserError in one sentence that names it.
    """

    takes: ClassVar = {"epsilon": _TAKEN, "epsilon_high": _TAKEN, "delta": _TAKEN}

    def __init__(self, name: str) -> None:
        self.name = name
        self._function: Callable[..., Any] | None = None
        self._was_finite: set[type] = set()
        """the kinds of inputs of which its terms have been"""

    def load(self, folder: Path | None = None) -> None:
        """Imports the function. A relative path is looked up in the current folder, then in `folder`. Raises UserError
        for a missing file or function, for one that takes something else, and for an unknown aggregation."""
        function = load_plugin(self.name, folder)
        self._require(callable(function), f"is {type(function).__name__}, a function is needed")
        try:
            inspect.signature(function).bind(None, None, None)
        except (TypeError, ValueError) as error:
            self._require(False, f"cannot be called as function(inputs, ratio, settings): {error}")
        known = typing.get_args(Aggregation)
        self.aggregation = getattr(function, "aggregation", known[0])
        shown = f"has the aggregation {self.aggregation!r}, expected one of {', '.join(known)}"
        self._require(self.aggregation in known, shown)
        self._function, self._was_finite = function, set()

    def terms(self, inputs: PolicyInputs, ratio: Tensor, settings: LossSettings) -> Terms:
        if self._function is None:
            self.load()
        assert self._function is not None
        logp = inputs.logp
        try:
            found = self._function(inputs, ratio, settings)
        except torch.OutOfMemoryError:
            raise
        except (Exception, SystemExit) as error:
            raise UserError(f"algorithm.loss {self.name} raised {described(error, [Path(__file__)])}.") from error
        self._require(isinstance(found, Tensor), f"returned {type(found).__name__}, a tensor of terms is needed")
        is_like, expected = f"{found.dtype} of shape {tuple(found.shape)}", f"{logp.dtype} of shape {tuple(logp.shape)}"
        self._require(is_like == expected, f"returned {is_like}, expected {expected}, as inputs.logp")
        self._require(found.requires_grad or not logp.requires_grad, "returned terms without gradient to inputs.logp")
        # Later ones are watched as any loss is, without waiting here.
        if type(inputs) not in self._was_finite and not found.is_meta:
            finite = found.isfinite() | (inputs.mask == 0)
            self._require(bool(finite.all()), f"returned {int((~finite).sum())} terms that are NaN or infinite")
            self._was_finite.add(type(inputs))
        return Terms(found)

    def _require(self, held: bool, otherwise: str) -> None:
        if not held:
            raise UserError(f"algorithm.loss {self.name} {otherwise}.")
