"""Bits, codes and indices: the reference's vectors, and every width."""

import pytest
import torch

from uniar.quantizer import (
    BinarySphericalQuantizer,
    bit_weights,
    bits_to_codes,
    bits_to_indices,
    indices_to_bits,
)


@pytest.mark.parametrize("width", [8, 64])
def test_golden_indices(golden, width):
    vectors = golden("bsq8").tensors("bsq")
    for kind in ("", "edge_"):
        codes, indices = vectors[f"d{width}.{kind}codes"], vectors[f"d{width}.{kind}indices"]
        bits = (codes > 0).to(torch.uint8)
        assert torch.equal(bits_to_indices(bits), indices)
        assert torch.equal(indices_to_bits(indices, width), bits)
        assert torch.equal(bits_to_codes(bits, torch.int8), codes)


@pytest.mark.parametrize("width", [8, 64])
def test_golden_quantizer(golden, width):
    vectors = golden("bsq8").tensors("bsq")
    quantizer = BinarySphericalQuantizer(width)
    assert torch.equal(quantizer.basis, vectors[f"d{width}.basis"])
    codes = bits_to_codes(quantizer(vectors[f"d{width}.z"]), torch.float32) / width**0.5
    torch.testing.assert_close(codes, vectors[f"d{width}.zq"], rtol=0, atol=1e-7)


@pytest.mark.parametrize("width", range(1, 65))
def test_round_trip(width):
    generator = torch.Generator().manual_seed(width)
    bits = torch.randint(0, 2, (5, 3, width), dtype=torch.uint8, generator=generator)
    edges = torch.stack([torch.zeros(width), torch.ones(width), torch.eye(width)[0], 1 - torch.eye(width)[0]])
    bits = torch.cat([bits.view(-1, width), edges.to(torch.uint8)])
    indices = bits_to_indices(bits)
    assert torch.equal(indices_to_bits(indices, width), bits)
    # Plain Python integers: the first bit is the most significant, and two's complement at 64.
    for row, index in zip(bits.tolist(), indices.tolist(), strict=True):
        assert index % 2**width == int("".join(map(str, row)), 2)
        assert (index < 0) == (width == 64 and row[0] == 1)


def test_shape_and_dtype():
    bits = torch.ones(2, 0, 4, 6, dtype=torch.bool)
    assert bits_to_indices(bits).shape == (2, 0, 4)
    assert bits_to_indices(bits).dtype == bit_weights(6).dtype == torch.int64
    assert indices_to_bits(torch.tensor(5), 3).tolist() == [1, 0, 1]
    assert bits_to_codes(bits, torch.bfloat16).dtype == torch.bfloat16


def test_zero_gives_bit_zero():
    assert BinarySphericalQuantizer(3)(torch.tensor([[0.0, -0.0, 1e-30]])).tolist() == [[0, 0, 1]]


def test_indices_of_another_type_are_refused():
    with pytest.raises(ValueError, match="int32"):
        indices_to_bits(torch.zeros(2, dtype=torch.int32), 8)
