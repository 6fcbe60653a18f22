"""How terms are averaged: over one forward pass."""

from typing import Literal

from torch import Tensor

Aggregation = Literal["sample", "constant", "batch"]


def aggregate(terms: Tensor, mask: Tensor, how: Aggregation) -> Tensor:
    """Terms of bits (B, T, …) → a scalar.

    sample: mean over each sample's bits, then over samples. constant: each sample's sum over N, then the mean over
    samples. batch: mean over all bits of the batch. Images of one size have one N, and the three are the same.
    """
    sums = (terms * mask).flatten(2).sum((1, 2))
    if how == "sample":
        return (sums / mask.flatten(2).sum((1, 2)).clamp(min=1)).mean()
    if how == "constant":
        return sums.mean() / terms[0].numel()
    return sums.sum() / mask.sum().clamp(min=1)
