"""Is the policy that an update replays the one that drew? Checked at a run's first update (docs/algorithms.md)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from rl.algorithm.bernoulli import entropy, log_prob
from rl.algorithm.metrics import Kind
from rl.config.sections import Recipe
from uniar.errors import RunError

# In bfloat16 a sound policy of 36 + 4 layers with random weights has a share of 0.006; were rollout and replay to round
# independently, as other kernels do, it would be 0.012. UniAR-Tiny's is 0.016 at most, the smallest fault's 0.086.
STEP1_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.03}
"""default of algorithm.step1_tolerance, by what the update computes in"""
CERTAIN = 1e-7
"""nats per bit, added to an entropy that is divided by: a policy that is certain of every bit has none"""
TEXT_CERTAIN = 1e-2
"""the same of a token, in nats: logits of some tens are rounded by 1e-6 and more, however certain a token is"""

PARTS: dict[str, Kind] = dict.fromkeys(("difference", "drawn_entropy", "replayed_size", "drawn_size"), "mean")
"""what `parts` measures; `compared` makes metrics of it"""


class RolloutMismatch(RunError):
    """The replayed policy is not the one that drew: every importance ratio would be wrong from the first step on."""


def parts(gap: Tensor, drawn_with: Tensor) -> dict[str, Tensor]:
    """`PARTS` of the gaps of a replay and of its rollout (same shape): means over the bits, which add up over batches.

    The difference is E |Δ log π(b)| in nats, over the policy that drew and exact as everything about a bit is: which
    bits came up counts for nothing. Sizes are squared gaps. Bits weigh by how uncertain they are, half-way between
    replay and rollout, so that rounding, which moves either as much, makes neither of them larger.
    """
    one, zero = (
        (log_prob(bits, gap) - log_prob(bits, drawn_with)).abs()
        for bits in (torch.ones_like(gap), torch.zeros_like(gap))
    )
    between = (gap + drawn_with) / 2
    weight = torch.sigmoid(between) * torch.sigmoid(-between)
    return {
        "difference": (torch.sigmoid(drawn_with) * one + torch.sigmoid(-drawn_with) * zero).mean(),
        "drawn_entropy": entropy(drawn_with).mean(),
        "replayed_size": (weight * gap.square()).mean(),
        "drawn_size": (weight * drawn_with.square()).mean(),
    }


TEXT_PARTS: dict[str, Kind] = dict.fromkeys(("text_difference", "text_entropy"), "mean")
"""what `text_parts` measures"""


def text_parts(log_probs: Tensor, drawn_with: Tensor, entropy: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """`TEXT_PARTS` of the tokens (R, A) that `mask` says were written: the mean |Δ log π| of what was written, in nats,
    and the mean entropy of the distributions that it was drawn from."""
    count = mask.sum().clamp(min=1)
    return {
        "text_difference": ((log_probs - drawn_with).abs() * mask).sum() / count,
        "text_entropy": (entropy * mask).sum() / count,
    }


def compared(parts: Mapping[str, float]) -> dict[str, float]:
    """Metrics of the `PARTS` and `TEXT_PARTS` of an update, those that are there: the difference, its share of the
    entropy, how much larger replayed gaps are than drawn ones."""
    found = {}
    if TEXT_PARTS.keys() <= parts.keys():
        found["rollout/text_logp_difference"] = parts["text_difference"]
        found["rollout/text_logp_difference_share"] = parts["text_difference"] / (parts["text_entropy"] + TEXT_CERTAIN)
    if not PARTS.keys() <= parts.keys():
        return found
    return found | {
        "rollout/logp_difference": parts["difference"],
        "rollout/logp_difference_share": parts["difference"] / (parts["drawn_entropy"] + CERTAIN),
        "rollout/gap_scale": math.sqrt((parts["replayed_size"] + CERTAIN) / (parts["drawn_size"] + CERTAIN)),
    }


def mismatch_of(metrics: Mapping[str, float], recipe: Recipe, precision: torch.dtype) -> RolloutMismatch | None:
    """What is wrong where the metrics of `compared` are past the tolerance t; None within it.

    precision: what the update computes in. Rounding moves a gap by a share of its size, and so log π by about that
    share of the entropy, however certain the policy is: at most t is allowed, times √(s² + (s - 1)²)/T, by which
    guidance and temperature magnify it. Rounding has no direction, so the scale of gaps is to be within t of 1.
    """
    guidance, tolerance = (
        recipe.rollout.guidance_settings,
        recipe.algorithm.step1_tolerance or STEP1_TOLERANCE[precision],
    )
    text_share = metrics.get("rollout/text_logp_difference_share")
    if text_share is not None and text_share > (text_allowed := tolerance / recipe.rollout.text_temperature):
        return RolloutMismatch(
            f"the replayed policy differs from the one that wrote: mean |Δ log π| per token is {text_share:.2g} of the "
            f"entropy (allowed: {text_allowed:.2g}; algorithm.step1_tolerance); training would follow wrong importance "
            "ratios"
        )
    if "rollout/gap_scale" not in metrics:
        return None
    scale = guidance.scale if guidance.convention.replays_unconditional else 1.0
    allowed = tolerance * math.hypot(scale, scale - 1) / guidance.temperature
    share, size = metrics["rollout/logp_difference_share"], metrics["rollout/gap_scale"]
    if share <= allowed and abs(size - 1) <= tolerance:
        return None
    return RolloutMismatch(
        f"the replayed policy differs from the one that drew: mean |Δ log π| per bit is {share:.2g} of the entropy "
        f"(allowed: {allowed:.2g}), and its logit gaps are {size:.4g} times as large (allowed: 1 ± {tolerance:.2g}; "
        "algorithm.step1_tolerance); training would follow wrong importance ratios"
    )
