"""How long a kernel takes at least, by a roofline of an H100. Computed: no kernel is run.

The largest of its arithmetic at a share of the peak that such kernels reach, its bytes at a share of the bandwidth, and
the least time that a kernel takes. Sums of it are lower than a GPU's by what no kernel does (gaps, waits), so they
compare two ways of doing the same; they do not forecast.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

HALF, SINGLE = 989e12, 67e12
"""FLOP/s of an H100 in bfloat16 and in float32, by its datasheet"""
BANDWIDTH = 0.85 * 3.35e12
"""bytes per second"""
LEAST = 2.5e-6
"""seconds"""
HOST = 7e-6
"""seconds that Python and torch take to launch one"""
TALL = 2048
"""rows from which on a product reaches the larger of two shares"""

_SOURCE_ALONE = {"index_copy_", "copy_", "index_put_", "scatter_", "_index_put_impl_", "masked_scatter_"}
_RESULT_ALONE = {"index_select", "embedding", "gather", "index", "slice_backward", "constant_pad_nd"}


def seconds(name: str, given: Sequence[Tensor], outputs: Sequence[Tensor], multiplications: float) -> float:
    """Of the kernel `name` from `given` to `outputs`; multiplications: of a product's or a convolution's."""
    arithmetic = 2 * multiplications / (_share(name, outputs) * (SINGLE if _is_single(given) else HALF))
    if "scaled_dot_product" in name:
        arithmetic = _attention(name, given) / (0.35 * (SINGLE if _is_single(given) else HALF))
    return max(arithmetic, moved(name, given, outputs) / BANDWIDTH, LEAST)


def moved(name: str, given: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
    """Bytes that it reads and writes. What is written in place, or only looked up, counts by what is written."""
    written = sum(map(_touched, outputs))
    if name in _SOURCE_ALONE:
        return 2 * sum(map(_touched, given[-1:]))
    return 2 * written if name in _RESULT_ALONE else written + sum(map(_touched, given))


def _touched(tensor: Tensor) -> int:
    """Expanded dimensions are read once."""
    return min(tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes())


def _is_single(given: Sequence[Tensor]) -> bool:
    return bool(given) and given[-1].dtype == torch.float32


def _share(name: str, outputs: Sequence[Tensor]) -> float:
    if "convolution" in name:
        return 0.35
    rows = outputs[0].numel() // max(1, outputs[0].shape[-1]) if outputs and outputs[0].dim() else 0
    return 0.65 if rows >= TALL else 0.5


def _attention(name: str, given: Sequence[Tensor]) -> float:
    """FLOP: two products forward, five backward."""
    backward = "backward" in name
    query, key = given[backward : backward + 2]  # the gradient comes first
    return (10 if backward else 4) * query.numel() * key.shape[-2]
