"""GRPO (2402.03300) with PPO's clipped surrogate (1707.06347): -min(r·A, clip(r, 1 - ε, 1 + ε_high)·A)."""

from typing import ClassVar

import torch
from torch import Tensor

from rl.algorithm.losses.averaging import Aggregation
from rl.algorithm.losses.inputs import PolicyInputs
from rl.algorithm.losses.loss import Loss, Terms, clamped
from rl.algorithm.losses.settings import LossSettings

EPSILON = 0.2
"""of a bit; narrower for a ratio that is the mean over several, see `PolicyInputs.narrowing`"""


class GRPO(Loss):
    """The ratio counts as far as it stays in the clip range, beyond it only where that makes the loss larger."""

    name = "grpo"
    paper = "GRPO, 2402.03300"
    aggregation: Aggregation = "sample"
    takes: ClassVar = {
        "epsilon": f"1 − ε is the lower end of the clip range; null: {EPSILON:g}, for m bits {EPSILON:g}/√m",
        "epsilon_high": "1 + ε is the upper end of the range; null: as epsilon",
    }
    epsilon_high: ClassVar[float | None] = None
    """its default for a bit; None: ε"""

    def clip_range(self, settings: LossSettings, narrowing: float | Tensor) -> tuple[float | Tensor, float | Tensor]:
        """(ε, ε_high) with the defaults filled in: how far the ratio may go below 1 and above 1.

        narrowing: `PolicyInputs.narrowing`, of each sample where a tensor.
        """
        low = EPSILON * narrowing if settings.epsilon is None else settings.epsilon
        if settings.epsilon_high is not None:
            return low, settings.epsilon_high
        return low, low if self.epsilon_high is None else self.epsilon_high * narrowing

    def terms(self, inputs: PolicyInputs, ratio: Tensor, settings: LossSettings) -> Terms:
        low, high = self.clip_range(settings, inputs.narrowing(settings.level))
        advantages, clipped = inputs.advantages, clamped(ratio, 1 - low, 1 + high)
        loss = -torch.min(ratio * advantages, clipped * advantages)
        return Terms(loss, (ratio < 1 - low) & (advantages < 0), (ratio > 1 + high) & (advantages > 0))
