"""Is the policy that an update replays the one that drew? Checked at a run's first update (docs/algorithms.md)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from rl.bernoulli import entropy, log_prob
from rl.config import Recipe
from rl.metrics import Kind
from uniar.errors import RunError

STEP1_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}
"""largest mean |Δ log π| over the mean entropy, by what the update computes in"""
CERTAIN = 1e-7
"""entropy in nats per bit, added to that of the policy: one that is certain of every bit has none to compare with"""

DIFFERENCES: dict[str, Kind] = {"rollout/logp_difference": "mean", "rollout/entropy": "mean"}


class RolloutMismatch(RunError):
    """The replayed policy is not the one that drew: every importance ratio would be wrong from the first step on."""


def differences(gap: Tensor, drawn_with: Tensor) -> dict[str, Tensor]:
    """`DIFFERENCES` of the gaps of a replay and of its rollout, of any shape; nats per bit.

    The difference is E |Δ log π(b)| over the policy that drew, exact like everything about a bit: which bits came up,
    and which policy drew them where another one is trained (`conditional`), does not matter.
    """
    one, zero = (
        (log_prob(bit, gap) - log_prob(bit, drawn_with)).abs() for bit in (torch.ones_like(gap), torch.zeros_like(gap))
    )
    p = torch.sigmoid(drawn_with)
    return {
        "rollout/logp_difference": (p * one + torch.sigmoid(-drawn_with) * zero).mean(),
        "rollout/entropy": entropy(drawn_with).mean(),
    }


def mismatch_of(metrics: Mapping[str, float], recipe: Recipe, precision: torch.dtype) -> RolloutMismatch | None:
    """What is wrong where the `DIFFERENCES` of an update, of all its samples, are past the tolerance; None within it.

    precision: what the update computes in. Rounding moves a gap by a share of its size, and |Δ log π| by about the same
    share of the entropy, however certain the policy is; a wrong policy moves it by more. An absolute tolerance would
    let everything pass that a policy of low entropy gets wrong.
    """
    tolerance = recipe.algorithm.step1_tolerance
    if tolerance is None:
        tolerance = STEP1_TOLERANCE[precision]
    difference, uncertainty = (metrics[name] for name in DIFFERENCES)
    share = difference / (uncertainty + CERTAIN)
    if share <= tolerance:
        return None
    return RolloutMismatch(
        f"the replayed policy differs from the one that drew by {difference:.2e} in mean |Δ log π| per bit, which is "
        f"{share:.2g} of the entropy and more than {tolerance:.2g} (algorithm.step1_tolerance): training would follow "
        "wrong importance ratios"
    )
