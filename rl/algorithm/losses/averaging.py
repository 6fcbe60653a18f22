"""How terms are averaged: over the samples of one forward pass, and over all forwards of an update."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Aggregation = Literal["sample", "constant", "batch"]


def aggregate(terms: Tensor, mask: Tensor, how: Aggregation) -> Tensor:
    """Terms of bits (B, T, …) → a scalar.

    sample: mean over each sample's bits, then over samples. constant: each sample's sum over N, the bits that the
    longest is padded to, then the mean over samples. batch: mean over all bits of the batch. Images of one size have
    one N, and the three are the same.
    """
    sums = (terms * mask).flatten(2).sum((1, 2))
    if how == "sample":
        return (sums / mask.flatten(2).sum((1, 2)).clamp(min=1)).mean()
    if how == "constant":
        return sums.mean() / terms[0].numel()
    return sums.sum() / mask.sum().clamp(min=1)


@dataclass(frozen=True)
class Extent:
    """How much a forward averages over."""

    rows: int
    """B; 0 for a forward that stands in where a process has nothing of this kind, whatever it computes"""
    elements: int
    """bits or tokens that exist, over the rows"""
    padded: int
    """bits or tokens of one row, padding included"""


def share(own: Extent, all_forwards: Sequence[Extent], how: Aggregation) -> float:
    """What the loss of one forward is multiplied by, so that the sum over all forwards of an update, of all its
    micro-batches and processes, is the loss of all their rows at once.

    own: one of all_forwards, which are of one kind, drawings or texts. The weights of an update add up to 1, but for
    "constant" with rows padded to different lengths, as each forward has divided by its own. 0 where no row exists.
    """
    rows = sum(forward.rows for forward in all_forwards)
    if not own.rows or not rows:
        return 0.0
    if how == "sample":
        return own.rows / rows
    if how == "constant":
        longest = max(forward.padded for forward in all_forwards if forward.rows)
        return own.rows * own.padded / (rows * longest)
    return own.elements / max(sum(forward.elements for forward in all_forwards if forward.rows), 1)
