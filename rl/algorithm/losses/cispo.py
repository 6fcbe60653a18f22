"""CISPO (2506.13585): -sg(min(r, cap))·A·log π(b). The weight is bounded, and no bit loses its gradient."""

from typing import ClassVar

from torch import Tensor

from rl.algorithm.losses.inputs import PolicyInputs
from rl.algorithm.losses.loss import Loss, Terms, clamped
from rl.algorithm.losses.settings import ConflictingSetting, LossSettings

CAP = 5.0


class CISPO(Loss):
    """The cap bounds the ratio itself, as in ScaleRL (2510.13786) and TRL, not its distance from 1. The original clips
    to [1 - ε, 1 + ε_high] and tunes the upper bound alone; the lower one is there when `epsilon` is."""

    name = "cispo"
    paper = "CISPO, 2506.13585"
    aggregation = "batch"
    takes: ClassVar = {
        "epsilon": "1 − ε is the smallest ratio; null: 0",
        "epsilon_high": (
            f"the cap of the ratio itself, as in TRL, so above 1; null: {CAP:g}, for m bits 1 + {CAP - 1:g}/√m"
        ),
    }

    def checked(self, settings: LossSettings) -> LossSettings:
        if settings.epsilon_high is not None and settings.epsilon_high <= 1:
            raise ConflictingSetting(
                "epsilon_high",
                f"is {settings.epsilon_high:g}; for {self.name} it is the cap of the ratio "
                f"itself, so at most 1 would scale every gradient alike; expected above 1, such as {CAP:g}.",
            )
        return super().checked(settings)

    def clip_range(self, settings: LossSettings, narrowing: float | Tensor) -> tuple[float, float | Tensor]:
        """The smallest and the largest ratio, with the defaults filled in. narrowing: `PolicyInputs.narrowing`."""
        floor = 0.0 if settings.epsilon is None else 1 - settings.epsilon
        if settings.epsilon_high is not None:
            return floor, settings.epsilon_high
        return floor, 1 + (CAP - 1) * narrowing

    def terms(self, inputs: PolicyInputs, ratio: Tensor, settings: LossSettings) -> Terms:
        floor, cap = self.clip_range(settings, inputs.narrowing(settings.level))
        weight, advantages = clamped(ratio.detach(), floor, cap), inputs.advantages
        loss = -weight * advantages * inputs.logp
        return Terms(loss, (ratio < floor) & (advantages < 0), (ratio > cap) & (advantages > 0))
