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

Estimator = Literal["grpo", "rloo", "gdpo"]
Scale = Literal["group", "batch", "none"]

EPS = 1e-4
"""Added to a standard deviation before dividing by it, as TRL and UniAR's own trainer do."""


def compute_advantages(
    rewards: Tensor,
    weights: Tensor | Sequence[float],
    *,
    group_size: int | None = None,
    groups: Tensor | None = None,
    estimator: Estimator = "grpo",
    scale: Scale = "group",
    names: Sequence[str] | None = None,
    measured: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """(B,) advantages in the type of `rewards`, and metrics. Computed in float64.

    rewards: (B, R), NaN where a reward does not apply. weights: (R,), or (B, R) where they depend on the sample's task;
    a reward of weight 0 is measured only, and its NaNs exclude nobody. measured: (B, R), what the metrics of each
    reward speak of where that is not `rewards` (scores before they were clipped or normalised). Groups are given as
    `group_size` (consecutive samples) or as `groups` (B,), the number of each sample's group, in any order.

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
    names = _checked(rewards, weights, names, estimator, scale)
    table = rewards.detach().double()
    factors = torch.as_tensor(weights, dtype=torch.float64, device=table.device)
    index, count = _group_index(len(table), group_size, groups, table.device)
    values, expected, counts = _counted(table, factors, index, count)
    present = ~table.isnan()

    if estimator == "gdpo":
        # A reward that does not apply to a group is not a score of 0 there: it stays out of the reward's statistics.
        applies = expected & counts[:, None]
        score = (_normalised(values, applies, index, count, scale) * factors).sum(1, keepdim=True)
        advantages = _normalised(score, counts[:, None], torch.zeros_like(index), 1, "group")[:, 0]
    else:
        score = (values * factors).sum(1, keepdim=True)
        leave_one_out = estimator == "rloo"
        advantages = _normalised(score, counts[:, None], index, count, scale, leave_one_out=leave_one_out)[:, 0]

    total = (values * factors).sum(1)[counts]
    _, deviation, size = _statistics(score, counts[:, None], index, count)
    alive = size[:, 0] > 0
    metrics = {
        "reward": total.mean().item(),
        "reward_std": _std(total),
        "frac_reward_zero_std": (deviation[alive, 0] < 1e-8).double().mean().item(),
        "advantages/excluded_samples": float((~counts).sum()),
    }
    for column, name in enumerate(names):
        scores = (table if measured is None else measured)[present[:, column], column].double()
        metrics[f"rewards/{name}/mean"] = scores.mean().item()
        metrics[f"rewards/{name}/std"] = _std(scores)
        metrics[f"rewards/{name}/missing"] = float(len(table) - len(scores))
    return advantages.to(rewards.dtype), {key: value for key, value in metrics.items() if not math.isnan(value)}


def group_deviations(
    rewards: Tensor, weights: Tensor | Sequence[float], *, group_size: int, estimator: Estimator = "grpo"
) -> Tensor:
    """(M,) how far the rewards of each group's samples differ: the standard deviation of their weighted sum or, with
    gdpo, the largest of a reward's, times its weight. 0: the group's advantages are 0. Arguments as above.
    """
    _checked(rewards, weights, None, estimator, "group")
    table = rewards.detach().double()
    factors = torch.as_tensor(weights, dtype=torch.float64, device=table.device)
    index, count = _group_index(len(table), group_size, None, table.device)
    values, expected, counts = _counted(table, factors, index, count)
    weighted = values * factors
    if estimator != "gdpo":
        return _statistics(weighted.sum(1, keepdim=True), counts[:, None], index, count)[1][:, 0]
    return _statistics(weighted, expected & counts[:, None], index, count)[1].amax(1)


def _counted(table: Tensor, factors: Tensor, index: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, R) rewards with 0 where there is none to count; where a reward has to be there (B, R): it applies to some
    sample of the group, and has a weight; which samples have all of those (B,)."""
    present = ~table.isnan()
    expected = (_group_sum(present.double(), index, count) > 0)[index] & (factors != 0)
    counts = expected.any(1) & (present | ~expected).all(1)
    return torch.where(expected & present, table, 0.0), expected, counts


def _normalised(
    values: Tensor, counts: Tensor, index: Tensor, count: int, scale: Scale, leave_one_out: bool = False
) -> Tensor:
    """(B, C) values minus their group's mean, over the standard deviation that `scale` names; 0 where `counts` (B, C)
    is false."""
    mean, deviation, size = _statistics(values, counts, index, count)
    centred = values - mean[index]
    if leave_one_out:
        # r minus the mean of the n - 1 others is n / (n - 1) times r minus the mean of all n.
        centred = centred * (size / (size - 1).clamp(min=1))[index]
    if scale == "group":
        centred = centred / (deviation[index] + EPS)
    elif scale == "batch":
        _, everywhere, _ = _statistics(values, counts, torch.zeros_like(index), 1)
        centred = centred / (everywhere + EPS)
    return torch.where(counts, centred, 0.0)


def _statistics(values: Tensor, counts: Tensor, index: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and unbiased standard deviation of the values that `counts` (B, C), by group, and how many they are: each
    (M, C)."""
    inside = counts.double()
    size = _group_sum(inside, index, count)
    mean = _group_sum(values * inside, index, count) / size.clamp(min=1)
    squares = _group_sum((values - mean[index]).square() * inside, index, count)
    return mean, (squares / (size - 1).clamp(min=1)).sqrt(), size


def _group_sum(values: Tensor, index: Tensor, count: int) -> Tensor:
    """(B, C) → (M, C)"""
    return values.new_zeros(count, values.shape[1]).index_add_(0, index, values)


def _std(values: Tensor) -> float:
    """Unbiased standard deviation; 0 for a single value, NaN for none."""
    if len(values) < 2:
        return 0.0 if len(values) else math.nan
    return values.std().item()


def _group_index(
    samples: int, group_size: int | None, groups: Tensor | None, device: torch.device
) -> tuple[Tensor, int]:
    """The group of each sample (B,), counted from 0, and the number of groups."""
    if group_size is not None and groups is None:
        if group_size < 1 or samples % group_size:
            raise ValueError(f"group_size {group_size} does not divide the {samples} samples.")
        return torch.arange(samples, device=device) // group_size, samples // group_size
    if group_size is not None or groups is None:
        raise ValueError("exactly one of group_size and groups must be given.")
    if groups.shape != (samples,):
        raise ValueError(f"groups has shape {tuple(groups.shape)}, expected ({samples},), one for each sample.")
    found, index = groups.to(device).unique(return_inverse=True)
    return index, len(found)


def _checked(
    rewards: Tensor, weights: Tensor | Sequence[float], names: Sequence[str] | None, estimator: str, scale: str
) -> list[str]:
    """The names of the rewards, once everything fits."""
    if estimator not in ("grpo", "rloo", "gdpo"):
        raise ValueError(f"unknown advantage estimator {estimator!r}; expected grpo, rloo or gdpo.")
    if scale not in ("group", "batch", "none"):
        raise ValueError(f"unknown advantage scale {scale!r}; expected group, batch or none.")
    if rewards.ndim != 2:
        raise ValueError(f"rewards have shape {tuple(rewards.shape)}, expected (samples, rewards).")
    columns = rewards.shape[1]
    names = [f"reward_{column}" for column in range(columns)] if names is None else list(names)
    shape = tuple(torch.as_tensor(weights).shape)
    if shape not in ((columns,), tuple(rewards.shape)) or len(names) != columns:
        raise ValueError(f"{columns} rewards came with {shape[-1] if shape else 0} weights and {len(names)} names.")
    infinite = rewards.isinf().nonzero()
    if len(infinite):
        sample, column = infinite[0].tolist()
        raise ValueError(f"reward {names[column]} of sample {sample} is {rewards[sample, column].item()}.")
    return names
