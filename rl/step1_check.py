"""Is the policy that an update replays the one that drew? Checked at a run's first update (docs/architecture.md)."""

import torch

from rl.config import Recipe
from uniar.errors import RunError

STEP1_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.02}
"""mean |Δ log π| a bit between rollout and replay, at T = 1 and without guidance"""


class RolloutMismatch(RunError):
    """The replayed policy is not the one that drew: every importance ratio would be wrong from the first step on."""


def mismatch_of(difference: float, recipe: Recipe, precision: torch.dtype) -> RolloutMismatch | None:
    """What is wrong where rollout and replay differ by `difference`, mean |Δ log π| a bit; None within the tolerance.

    precision: what the update computes in. Guidance and temperature magnify differences of the raw gaps.
    """
    tolerance = recipe.algorithm.step1_tolerance
    if tolerance is None:
        drawn = recipe.rollout
        tolerance = STEP1_TOLERANCE[precision] * (2 * drawn.guidance_scale - 1) / drawn.temperature
    if difference <= tolerance:
        return None
    return RolloutMismatch(
        f"the replayed policy differs from the one that drew by {difference:.2e} in mean |Δ log π| a bit, more than "
        f"{tolerance:.2e} (algorithm.step1_tolerance): training would follow wrong importance ratios"
    )
