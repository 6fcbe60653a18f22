"""DPPO with a trust region in total variation (2602.04879): -A·sg(min(r, 20))·log π(b)·keep."""

from typing import ClassVar

from torch import Tensor

from rl.algorithm.losses.inputs import PolicyInputs
from rl.algorithm.losses.loss import Loss, Terms
from rl.algorithm.losses.settings import LossSettings

DELTA = 0.1
"""how far ε = 0.2 lets a bit of probability 1/2 move"""
MAX_RATIO = 20.0


class DPPOTV(Loss):
    """A bit is dropped once its probability has moved by more than δ to where the advantage pushes it: kept are
    p(b) - p_old(b) ≤ δ for A > 0, and ≥ -δ otherwise. Exact for bits, where a vocabulary has to be lumped into two."""

    name = "dppo_tv"
    paper = "DPPO, 2602.04879"
    aggregation = "batch"
    levels = ("bit",)
    takes: ClassVar = {
        "delta": f"how far a bit's probability may move from the old policy's; null: {DELTA:g}",
    }

    def terms(self, inputs: PolicyInputs, ratio: Tensor, settings: LossSettings) -> Terms:
        delta = DELTA if settings.delta is None else settings.delta
        advantages, moved = inputs.advantages, inputs.logp.detach().exp() - inputs.old_logp.exp()
        low, high = (moved < -delta) & (advantages < 0), (moved > delta) & (advantages > 0)
        weight = ratio.detach().clamp(max=MAX_RATIO) * ~(low | high)
        return Terms(-weight * advantages * inputs.logp, low, high)
