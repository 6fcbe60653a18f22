"""Rewards → advantages: what is better than the other images of the same prompt, and by how much.

Shapes: B samples · R rewards · M groups (one per prompt). B is the whole batch over all ranks: the caller gathers the
rewards, and each rank takes its own slice of the advantages, so a group may straddle ranks.

A reward is NaN where it does not apply. A reward that applies to no sample of a group drops out of that group, and the
weights of the others stay as they are. A sample that lacks a reward which others of its group have gets advantage 0 and
leaves all statistics: scoring the missing reward as 0 would teach the policy to make rewards fail.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from rl.algorithm.group_statistics import Groups, Scale, checked, counted, normalised, std

Estimator = Literal["grpo", "rloo", "gdpo"]


def compute_advantages(
    rewards: Tensor,
    weights: Tensor | Sequence[float],
    *,
    group_size: int,
    estimator: Estimator = "grpo",
    scale: Scale = "group",
    names: Sequence[str] | None = None,
    measured: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """(B,) advantages in the type of `rewards`, and metrics. Computed in float64.

    rewards: (B, R), NaN where a reward does not apply. weights: (R,), or (B, R) where they depend on the sample's task;
    a reward of weight 0 is measured only, and its NaNs exclude nobody. measured: (B, R), what the metrics of each
    reward speak of where that is not `rewards` (scores before they were clipped or normalised). A group is `group_size`
    consecutive samples.

    grpo: weighted sum r, minus the group's mean (2402.03300). rloo: minus the mean of the group's other samples
    (2402.14740). Both are divided by std + 1e-4, the unbiased standard deviation of r over the group or the batch, or
    by nothing (2503.20783). gdpo: each reward minus its group mean and divided by its std + 1e-4 (over what `scale`
    says; the paper's is group), weighted, summed, then whitened over the batch (2601.05242). A group with one sample
    that counts has nothing to compare: advantage 0.

    Metrics, those without a value left out: `reward`, `reward_std` (weighted sum over the samples that count),
    `frac_reward_zero_std` (of the groups in which a sample counts: all rewards equal, so no signal),
    `advantages/excluded_samples`, and for each reward `rewards/NAME/mean`, `/std`, `/missing` (a count of NaNs).

    Raises ValueError for shapes that do not fit, infinite rewards, or an unknown estimator or scale.
    """
    names = checked(rewards, weights, names, estimator, scale)
    table = rewards.detach().double()
    factors = torch.as_tensor(weights, dtype=torch.float64, device=table.device)
    groups = Groups.of(len(table), group_size, table.device)
    values, expected, counts = counted(table, factors, groups)
    present = ~table.isnan()

    if estimator == "gdpo":
        # A reward that does not apply to a group is not a score of 0 there: it stays out of the reward's statistics.
        applies = expected & counts[:, None]
        score = (normalised(values, applies, groups, scale) * factors).sum(1, keepdim=True)
        advantages = normalised(score, counts[:, None], groups.merged(), "group")[:, 0]
    else:
        score = (values * factors).sum(1, keepdim=True)
        leave_one_out = estimator == "rloo"
        advantages = normalised(score, counts[:, None], groups, scale, leave_one_out=leave_one_out)[:, 0]

    total = (values * factors).sum(1)[counts]
    _, deviation, size = groups.statistics(score, counts[:, None])
    alive = size[:, 0] > 0
    metrics = {
        "reward": total.mean().item(),
        "reward_std": std(total),
        "frac_reward_zero_std": (deviation[alive, 0] < 1e-8).double().mean().item(),
        "advantages/excluded_samples": float((~counts).sum()),
    }
    for column, name in enumerate(names):
        scores = (table if measured is None else measured)[present[:, column], column].double()
        metrics[f"rewards/{name}/mean"] = scores.mean().item()
        metrics[f"rewards/{name}/std"] = std(scores)
        metrics[f"rewards/{name}/missing"] = float(len(table) - len(scores))
    return advantages.to(rewards.dtype), {key: value for key, value in metrics.items() if not math.isnan(value)}


def group_deviations(
    rewards: Tensor, weights: Tensor | Sequence[float], *, group_size: int, estimator: Estimator = "grpo"
) -> Tensor:
    """(M,) how far the rewards of each group's samples differ: the standard deviation of their weighted sum or, with
    gdpo, the largest of a reward's, times its weight. 0: the group's advantages are 0. Arguments as above.
    """
    checked(rewards, weights, None, estimator, "group")
    table = rewards.detach().double()
    factors = torch.as_tensor(weights, dtype=torch.float64, device=table.device)
    groups = Groups.of(len(table), group_size, table.device)
    values, expected, counts = counted(table, factors, groups)
    weighted = values * factors
    if estimator != "gdpo":
        return groups.statistics(weighted.sum(1, keepdim=True), counts[:, None])[1][:, 0]
    return groups.statistics(weighted, expected & counts[:, None])[1].amax(1)
