"""Statistics of rewards by group, of samples that count: what advantages are made of.

Shapes: B samples · R rewards · C columns · M groups, of consecutive samples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Scale = Literal["group", "batch", "none"]

EPS = 1e-4
"""Added to a standard deviation before dividing by it, as TRL and UniAR's own trainer do."""


@dataclass(frozen=True)
class Groups:
    """Which group each sample is in."""

    index: Tensor
    """(B,), counted from 0"""
    count: int
    """M"""

    @classmethod
    def of(cls, samples: int, size: int, device: torch.device) -> "Groups":
        """Raises ValueError where the size does not divide the samples."""
        if size < 1 or samples % size:
            raise ValueError(f"group_size {size} does not divide the {samples} samples.")
        return cls(torch.arange(samples, device=device) // size, samples // size)

    def merged(self) -> "Groups":
        """All samples as one group."""
        return Groups(torch.zeros_like(self.index), 1)

    def sum(self, values: Tensor) -> Tensor:
        """(B, C) → (M, C)"""
        return values.new_zeros(self.count, values.shape[1]).index_add_(0, self.index, values)

    def statistics(self, values: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and unbiased standard deviation of the values that `counts` (B, C), and how many they are: each
        (M, C)."""
        inside = counts.double()
        size = self.sum(inside)
        mean = self.sum(values * inside) / size.clamp(min=1)
        squares = self.sum((values - mean[self.index]).square() * inside)
        return mean, (squares / (size - 1).clamp(min=1)).sqrt(), size


def counted(table: Tensor, factors: Tensor, groups: Groups) -> tuple[Tensor, Tensor, Tensor]:
    """(B, R) rewards with 0 where there is none to count; where a reward has to be there (B, R): it applies to some
    sample of the group, and has a weight; which samples have all of those (B,)."""
    present = ~table.isnan()
    expected = (groups.sum(present.double()) > 0)[groups.index] & (factors != 0)
    counts = expected.any(1) & (present | ~expected).all(1)
    return torch.where(expected & present, table, 0.0), expected, counts


def normalised(values: Tensor, counts: Tensor, groups: Groups, scale: Scale, leave_one_out: bool = False) -> Tensor:
    """(B, C) values minus their group's mean, over the standard deviation that `scale` names; 0 where `counts` (B, C)
    is false."""
    mean, deviation, size = groups.statistics(values, counts)
    centred = values - mean[groups.index]
    if leave_one_out:
        # r minus the mean of the n - 1 others is n / (n - 1) times r minus the mean of all n.
        centred = centred * (size / (size - 1).clamp(min=1))[groups.index]
    if scale == "group":
        centred = centred / (deviation[groups.index] + EPS)
    elif scale == "batch":
        _, everywhere, _ = groups.merged().statistics(values, counts)
        centred = centred / (everywhere + EPS)
    return torch.where(counts, centred, 0.0)


def std(values: Tensor) -> float:
    """Unbiased standard deviation; 0 for a single value, NaN for none."""
    if len(values) < 2:
        return 0.0 if len(values) else math.nan
    return values.std().item()


def checked(
    rewards: Tensor, weights: Tensor | Sequence[float], names: Sequence[str] | None, estimator: str, scale: str
) -> list[str]:
    """The names of the rewards, once everything fits. Raises ValueError where it does not."""
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
