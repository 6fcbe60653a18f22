"""Bits, codes and indices: the three forms of a patch's binary code (docs/checkpoint-format.md, 4).

bits     {0, 1}, uint8, shape (..., K)
codes    {-1, +1} = 2·bit - 1, shape (..., K); over √K they lie on the unit sphere (BSQ, arXiv 2406.07548)
index    Σ bit_i · 2^(K-1-i), int64, shape (...): the first bit is the most significant. At K = 64 it has weight -2^63
"""

import torch
from torch import Tensor, nn


def bits_to_codes(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """{0, 1} → {-1, +1} in `dtype`, same shape."""
    return bits.to(dtype).mul(2).sub(1)


def bit_weights(bsq_dim: int, device: torch.device | str | None = None) -> Tensor:
    """(K,) int64: 2^(K-1) … 1, the first of them -2^63 when K is 64."""
    shifts = torch.arange(bsq_dim - 1, -1, -1, device=device)
    return torch.ones_like(shifts) << shifts


def bits_to_indices(bits: Tensor) -> Tensor:
    """(..., K) bits → (...) int64."""
    return (bits.to(torch.int64) * bit_weights(bits.shape[-1], bits.device)).sum(-1)


def indices_to_bits(indices: Tensor, bsq_dim: int) -> Tensor:
    """(...) int64 → (..., K) uint8. Exact for every K from 1 to 64, negative indices included."""
    if indices.dtype != torch.int64:
        raise ValueError(f"indices are {indices.dtype}; they must be int64 (a 64-bit code needs all of it).")
    shifts = torch.arange(bsq_dim - 1, -1, -1, device=indices.device)
    # >> copies the sign bit downwards, which the mask removes.
    return ((indices[..., None] >> shifts) & 1).to(torch.uint8)


class BinarySphericalQuantizer(nn.Module):
    """Sign quantization. The buffers are part of the checkpoint's layout."""

    def __init__(self, bsq_dim: int) -> None:
        super().__init__()
        self.register_buffer("basis", bit_weights(bsq_dim))
        self.register_buffer("group_basis", torch.ones(1, dtype=torch.int64))

    def forward(self, projected: Tensor) -> Tensor:
        """(..., K) projections → (..., K) uint8 bits; their scale does not matter, and 0 gives bit 0."""
        return (projected > 0).to(torch.uint8)
