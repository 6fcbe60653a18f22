"""The image tokenizer against the reference's vectors."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from uniar.configuration_uniar import UniARVisionConfig
from uniar.modeling_vision import UniARVisionModel
from uniar.quantizer import bits_to_indices, indices_to_bits

VARIANTS = ["bsq8", "bsq64", "bsq8_novd"]
ATTENTIONS = ["eager", "sdpa"]


@pytest.fixture(params=[(variant, attention) for variant in VARIANTS for attention in ATTENTIONS], ids="-".join)
def case(request, golden):
    variant, attention = request.param
    vectors = golden(variant)
    return SimpleNamespace(
        tower=vectors.model(attention).model.visual, pixels=vectors.pixels(), **vectors.tensors("vision")
    )


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_bits_and_indices(case):
    bits = case.tower.encode(case.pixels, case.grid_thw)
    assert bits.dtype == torch.uint8
    assert torch.equal(bits, case.bits)
    assert torch.equal(bits_to_indices(bits), case.indices)
    assert torch.equal(indices_to_bits(case.indices, bits.shape[-1]), bits)


@torch.no_grad()
def test_projections(case):
    projected = F.normalize(case.tower.encode_projections(case.pixels, case.grid_thw), dim=-1)
    for level in range(projected.shape[1]):
        if hasattr(case, f"prequant_{level}"):
            close(projected[:, level].flatten(0, 1), getattr(case, f"prequant_{level}"))


@torch.no_grad()
def test_images_do_not_see_each_other(case):
    alone = [
        case.tower.encode(pixels, grid[None])
        for pixels, grid in zip(case.pixels.split(case.grid_thw.prod(1).tolist()), case.grid_thw, strict=True)
    ]
    assert torch.equal(torch.cat(alone), case.bits)


@torch.no_grad()
def test_language_features(case):
    expected = [case.features, case.deepstack_0, case.deepstack_1, case.deepstack_2]
    for found, wanted in zip(case.tower.language_features(case.bits), expected, strict=True):
        close(found, wanted)
    output = case.tower(case.pixels, case.grid_thw)
    for found, wanted in zip([output.pooler_output, *output.deepstack_features], expected, strict=True):
        close(found, wanted)


@torch.no_grad()
def test_dequantized_features(case):
    features = case.tower.dequantize(case.bits)
    merged = case.tower.language_features(case.bits)
    for level, name in enumerate(["main", "deepstack_0", "deepstack_1", "deepstack_2"]):
        close(features[level], getattr(case, f"bsq_only_{name}"))
        # The reference's own way from bits to features, with its two switches: a merger, and merger.norm left out.
        normed = features[level] if name == "main" else case.tower.merger.norm(features[level])
        for switches, found in {
            "merger0_skipnorm1": features[level],
            "merger0_skipnorm0": normed,
            "merger1_skipnorm0": merged[level],
        }.items():
            if hasattr(case, f"i2f_{switches}_{name}"):
                close(found, getattr(case, f"i2f_{switches}_{name}"))


@torch.no_grad()
@pytest.mark.parametrize("variant", ["bsq8", "bsq64"])
def test_decoder_features(golden, variant):
    """Raster order over a grid that is not square, level fastest."""
    tower = UniARVisionModel.from_pretrained(golden(variant).checkpoint / "bsq_encoder", torch_dtype=torch.float32)
    vectors = golden(variant).tensors("decoder")
    for name, grid in {"sq": (2, 2), "rect": (1, 2)}.items():
        bits = indices_to_bits(vectors[f"{name}.ids"], tower.config.bsq_dim)
        close(tower.decoder_features(bits, grid), vectors[f"{name}.siglip_tensor"])
    with pytest.raises(ValueError, match=r"2×3 = 6"):
        tower.decoder_features(bits, (2, 3))


@pytest.fixture(scope="module")
def small():
    """Settings of a tower small enough to be built by the dozen."""
    return {
        "depth": 2,
        "hidden_size": 8,
        "num_heads": 2,
        "intermediate_size": 8,
        "num_position_embeddings": 16,
        "out_hidden_size": 12,
        "deepstack_visual_indexes": [0],
        "bsq_dim": 5,
        "bsq_hidden_dim": 6,
    }


@torch.no_grad()
@pytest.mark.parametrize("skip", [True, False])
def test_where_the_final_norm_stands(small, skip):
    torch.manual_seed(0)
    tower = UniARVisionModel(UniARVisionConfig(**small, bsq_skip_final_layernorm=skip))
    assert tower.merger.norm.weight.shape == ((8,) if skip else (32,))
    bits = torch.randint(0, 2, (3, *tower.config.code_shape), dtype=torch.uint8)
    main, deepstack = tower.dequantize(bits)
    found = tower.language_features(bits)
    merger, norm = tower.merger, tower.merger.norm
    blocks = norm(main).view(3, 32) if skip else norm(main.view(3, 32))
    close(found[0], merger.linear_fc2(F.gelu(merger.linear_fc1(blocks))))
    close(found[1], tower.deepstack_merger_list[0](norm(deepstack) if skip else deepstack))


@torch.no_grad()
def test_features_have_the_models_dtype(golden):
    vectors = golden("bsq8").tensors("vision")
    for dtype in (torch.float32, torch.bfloat16):
        tower = golden("bsq8").model(dtype=dtype).model.visual
        assert tower.encode(golden("bsq8").pixels(), vectors["grid_thw"]).dtype == torch.uint8
        assert {features.dtype for features in tower.language_features(vectors["bits"])} == {dtype}
        assert tower.bsq.basis.dtype == torch.int64


def test_bits_of_another_shape_are_refused(small):
    tower = UniARVisionModel(UniARVisionConfig(**small))
    with pytest.raises(ValueError, match=r"\(2, 4, 6\).*\(2, 4, 5\)"):
        tower.dequantize(torch.zeros(1, 2, 4, 6, dtype=torch.uint8))


@pytest.mark.parametrize("setting", [{"bsq_dim": 65}, {"bsq_dim": 0}, {"use_bsq": False}])
def test_impossible_configs_are_refused(small, setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        UniARVisionConfig(**{**small, **setting})


def test_released_sizes_are_the_defaults():
    """docs/checkpoint-format.md, 2."""
    config = UniARVisionConfig()
    assert config.code_shape == (4, 4, 64)
    assert config.pixels_per_token == 32
    sizes = (config.depth, config.hidden_size, config.num_heads, config.intermediate_size, config.out_hidden_size)
    assert sizes == (27, 1152, 16, 4304, 4096)
    assert (config.num_position_embeddings, config.temporal_patch_size, config.bsq_hidden_dim) == (2304, 2, 8192)
    assert list(config.deepstack_visual_indexes) == [8, 16, 24]
    assert config.hidden_act == "gelu_pytorch_tanh"
