"""The visual decoder against the reference's vectors, and in batches, groups and shapes that the reference lacks."""

import gc
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import T5EncoderModel

from uniar.errors import RunError, UserError
from uniar.modeling_decoder import UniARVisualDecoder, draw_latents
from uniar.modeling_sd3 import SD3Transformer2DModelWithSigLIP, grid_shaped_like
from uniar.quantizer import indices_to_bits

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = [("bsq8", "sq"), ("bsq8", "sq125"), ("bsq8", "rect"), ("bsq64", "sq"), ("bsq64", "rect")]


@pytest.fixture(scope="module")
def models():
    """A variant's decoder, golden tensors and the sizes of its cases, loaded once."""
    loaded = {}

    def load(variant):
        if variant not in loaded:
            folder = GOLDEN / variant
            loaded[variant] = SimpleNamespace(
                decoder=UniARVisualDecoder.from_pretrained(folder / "ckpt", torch_dtype=torch.float32),
                golden=load_file(folder / "decoder.safetensors"),
                sizes={
                    name: (case["ar_height"], case["ar_width"], case["upsampling_ratio"])
                    for name, case in json.loads((folder / "manifest.json").read_text())["params"][
                        "decoder_cases"
                    ].items()
                },
            )
        return loaded[variant]

    return load


def close(found, expected, tolerance=1e-4):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def pixels(images):
    return np.stack([np.asarray(image) for image in images]).astype(int)


def transformer_inputs(golden):
    names = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")
    return {name: golden[f"tr.{name}"] for name in names}


# --- the transformer


@pytest.mark.parametrize("variant", ["bsq8", "bsq64"])
def test_transformer_adds_the_features_whatever_layers_are_skipped(models, variant):
    transformer, golden = models(variant).decoder.sd3_transformer, models(variant).golden
    inputs, features = transformer_inputs(golden), golden["tr.siglip"]
    with torch.no_grad():
        prepared = transformer.prepare_siglip_tensor(features, (8, 6), (8, 6))
        close(prepared, golden["tr.prepared_siglip"])
        close(transformer(**inputs, siglip_tensor=features).sample, golden["tr.out"])
        close(transformer(**inputs, prepared_siglip=prepared).sample, golden["tr.out"])
        close(transformer(**inputs, siglip_tensor=features, skip_layers=[0]).sample, golden["tr.out_skip0"])
        close(transformer(**inputs).sample, golden["tr.out_nosiglip"])


def test_features_of_a_failed_call_do_not_reach_the_next(models):
    transformer, golden = models("bsq8").decoder.sd3_transformer, models("bsq8").golden
    inputs = transformer_inputs(golden)
    with torch.no_grad():
        with pytest.raises(RuntimeError):
            transformer(**inputs | {"pooled_projections": torch.zeros(2, 3)}, siglip_tensor=golden["tr.siglip"])
        close(transformer(**inputs).sample, golden["tr.out_nosiglip"])


def test_features_are_resized_as_the_reference_does(models):
    transformer, golden = models("bsq8").decoder.sd3_transformer, models("bsq8").golden
    with torch.no_grad():
        features = golden["tr.siglip_4x4"]
        close(transformer.prepare_siglip_tensor(features, (4, 4), (10, 7)), golden["tr.prepared_siglip_4x4_to_10x7"])
        close(transformer.prepare_siglip_tensor(features, (4, 4)), golden["tr.prepared_siglip_4x4_to_none"])


@pytest.mark.parametrize(("grid", "target"), [((2, 8), (4, 16)), ((2, 4), (4, 8)), ((6, 2), (9, 3))])
def test_features_keep_their_place_on_a_grid_that_is_not_square(models, grid, target):
    """(2, 8) is the shape whose 16 tokens pass for a 4×4 square. Rows stay rows, columns stay columns."""
    transformer = models("bsq8").decoder.sd3_transformer
    rows, columns = grid
    direction = torch.randn(transformer.config.siglip_channels, generator=torch.Generator().manual_seed(0))
    by_column = torch.arange(columns).expand(rows, columns).reshape(1, -1, 1) * direction
    random = torch.randn(1, rows * columns, direction.numel(), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        resized = transformer.prepare_siglip_tensor(by_column, grid, target).view(*target, -1)
        along = transformer.siglip_embed_add_latent(direction)
        steps = (resized @ along / along.square().sum()).diff(dim=1)
        close(resized, resized[:1].expand_as(resized), 1e-3)
        assert (steps > 0).all()

        straight = transformer.prepare_siglip_tensor(random, grid, target).view(*target, -1)
        flipped = random.view(rows, columns, -1).transpose(0, 1).reshape(1, rows * columns, -1)
        across = transformer.prepare_siglip_tensor(flipped, grid[::-1], target[::-1]).view(*target[::-1], -1)
        close(straight, across.transpose(0, 1))
    assert grid_shaped_like(target, rows * columns) == grid


def test_transformer_refuses_features_that_fit_no_grid(models):
    transformer, golden = models("bsq64").decoder.sd3_transformer, models("bsq64").golden
    with pytest.raises(ValueError, match=r"grid of 4×4 needs \(B, 16, 128\)"):
        transformer.prepare_siglip_tensor(golden["tr.siglip"], (4, 4))
    with pytest.raises(ValueError, match="super_resolution false"):
        transformer.prepare_siglip_tensor(golden["tr.siglip"], (8, 6), (16, 12))
    with pytest.raises(ValueError, match="47 patches fill no grid"):
        transformer(**transformer_inputs(golden), siglip_tensor=golden["tr.siglip"][:, :47])
    with pytest.raises(ValueError, match="add_siglip_tensor_to_latent is false"):
        SD3Transformer2DModelWithSigLIP(**transformer.config | {"add_siglip_tensor_to_latent": False})


@pytest.mark.parametrize("variant", ["bsq8", "bsq64"])
def test_transformer_is_saved_with_the_config_and_names_it_was_loaded_with(models, variant, tmp_path):
    source = GOLDEN / variant / "ckpt" / "sd3_transformer"
    models(variant).decoder.sd3_transformer.save_pretrained(tmp_path)
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path))
    written_by = {"_diffusers_version", "_name_or_path"}
    assert {k: v for k, v in before.items() if k not in written_by} == {
        k: v for k, v in after.items() if k not in written_by
    }
    weights, saved = (load_file(folder / "diffusion_pytorch_model.safetensors") for folder in (source, tmp_path))
    assert weights.keys() == saved.keys()
    assert all(torch.equal(weights[name].float(), saved[name]) for name in weights)


# --- the decoder against the reference


@pytest.mark.parametrize(("variant", "case"), CASES)
def test_features_of_bits(models, variant, case):
    decoder, golden, sizes = vars(models(variant)).values()
    height, width, _ = sizes[case]
    bits = indices_to_bits(golden[f"{case}.ids"], decoder.bsq_encoder.config.bsq_dim)
    features = decoder.encode_features(bits, (height // 32, width // 32))
    close(features, golden[f"{case}.siglip_tensor"])
    if case == "sq":
        close(features[:1], golden["rl_server.sq0.siglip_skipnorm1"])


@pytest.mark.parametrize("guidance_scale", [1.0, 1.5])
@pytest.mark.parametrize(("variant", "case"), CASES)
def test_latents_and_images(models, variant, case, guidance_scale):
    decoder, golden, sizes = vars(models(variant)).values()
    settings = {
        "num_inference_steps": 2,
        "guidance_scale": guidance_scale,
        "latents": golden[f"{case}.latents"],
    }
    latents = decoder.decode(golden[f"{case}.ids"], *sizes[case], **settings, output_type="latent")
    close(latents, golden[f"{case}.out_latents_g{guidance_scale}"])
    if (stored := golden.get(f"{case}.out_image_g{guidance_scale}")) is not None:
        close(decoder.decode(golden[f"{case}.ids"], *sizes[case], **settings, output_type="pt")[:1], stored)


@pytest.mark.parametrize("variant", ["bsq8", "bsq64"])
def test_decoded_pixels_from_a_seeded_generator(models, variant):
    """To one grey level: a rounding difference of 1e-6 can fall on either side of a half."""
    decoder, golden, sizes = vars(models(variant)).values()
    generator = torch.Generator().manual_seed(7)
    images = decoder.decode(golden["sq.ids"], *sizes["sq"], num_inference_steps=3, generator=generator)
    stored = golden["sq.decode_images"].numpy().astype(int)
    assert [image.mode for image in images] == ["RGB", "RGB"]
    difference = np.abs(pixels(images)[: len(stored)] - stored)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01

    bits = indices_to_bits(golden["sq.ids"], decoder.bsq_encoder.config.bsq_dim)
    again = decoder.decode(bits, *sizes["sq"], num_inference_steps=3, latents=golden["sq.decode_latents"])
    assert np.array_equal(pixels(again), pixels(images))


def test_bfloat16_stays_close_to_float32(models):
    _, golden, sizes = vars(models("bsq64")).values()
    decoder = UniARVisualDecoder.from_pretrained(GOLDEN / "bsq64" / "ckpt", torch_dtype=torch.bfloat16)
    assert {p.dtype for p in decoder.parameters()} == {decoder.dtype} == {torch.bfloat16}
    images = decoder.decode(golden["sq.ids"], *sizes["sq"], num_inference_steps=3, latents=golden["sq.decode_latents"])
    # The reference in bfloat16 is 0.88 grey levels off its own float32.
    assert np.abs(pixels(images) - golden["sq.decode_images"].numpy()).mean() < 0.88


@pytest.mark.parametrize("variant", ["bsq8", "bsq64"])
def test_prompt_is_encoded_as_the_reference_does(models, variant):
    decoder, golden, _ = vars(models(variant)).values()
    close(decoder.pooled_prompt_embeds, golden["pooled_prompt_embeds"])
    assert decoder.prompt_embeds.shape == (1, 77 + 256, 32)
    if "prompt_embeds" in golden:
        close(decoder.prompt_embeds, golden["prompt_embeds"])


@pytest.mark.parametrize("variant", ["bsq8", "bsq64"])
@pytest.mark.parametrize("steps", [2, 28])
def test_schedule(models, variant, steps):
    scheduler = models(variant).decoder.schedule(steps, (4, 8, 8))
    close(scheduler.timesteps, models(variant).golden[f"timesteps_{steps}"])
    close(scheduler.sigmas, models(variant).golden[f"sigmas_{steps}"], 1e-7)


def test_schedule_shifts_with_the_size_where_the_checkpoint_says_so(models):
    decoder = models("bsq8").decoder
    plain = dict(decoder.scheduler_config)
    decoder.scheduler_config = plain | {"use_dynamic_shifting": True}
    try:
        small, large = (decoder.schedule(4, (4, side, side)).sigmas for side in (32, 128))
    finally:
        decoder.scheduler_config = plain
    assert (large[1:-1] > small[1:-1]).all()


# --- what a trainer relies on


def test_nothing_is_trained_and_the_text_encoders_are_gone(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIAR_CACHE", str(tmp_path))  # so that they were there
    decoder = UniARVisualDecoder.from_pretrained(GOLDEN / "bsq8" / "ckpt", torch_dtype=torch.float32)
    assert not any(parameter.requires_grad for parameter in decoder.parameters())
    decoder.train()
    assert not any(module.training for module in decoder.modules())
    assert not any(type(thing) is T5EncoderModel for thing in gc.get_objects())


@pytest.mark.parametrize("guidance_scale", [1.0, 1.5])
def test_batch_size_does_not_change_the_images(models, guidance_scale):
    decoder = models("bsq8").decoder
    indices = torch.randint(0, 256, (5, 2, 4, 4), generator=torch.Generator().manual_seed(2))
    results = [
        decoder.decode(
            indices,
            ar_height=32,
            ar_width=64,
            upsampling_ratio=1.5,
            num_inference_steps=2,
            guidance_scale=guidance_scale,
            generator=torch.Generator().manual_seed(3),
            batch_size=batch_size,
            output_type="pt",
        )
        for batch_size in (None, 1, 2)
    ]
    assert results[0].shape == (5, 3, 48, 96)
    assert (results[0][1:] - results[0][:-1]).abs().amax((1, 2, 3)).min() > 0.01
    close(results[1], results[0], 1e-5)
    close(results[2], results[0], 1e-5)


def test_a_group_shares_its_noise_and_differs_by_its_bits(models):
    decoder, golden, sizes = vars(models("bsq8")).values()
    settings = {"num_inference_steps": 2, "output_type": "latent"}
    alike = golden["sq.ids"][:1].expand(3, -1, -1, -1)
    first, second, other = decoder.decode(alike, *sizes["sq"], noise_seeds=[11, 11, 12], batch_size=2, **settings)
    close(first, second, 1e-5)
    assert (first - other).abs().max() > 0.1
    group = decoder.decode(golden["sq.ids"], *sizes["sq"], noise_seeds=[11, 11], **settings)
    close(group[0], first, 1e-5)
    assert (group[0] - group[1]).abs().max() > 0.01


def test_noise_belongs_to_its_seed_not_to_its_neighbours():
    noise = draw_latents([5, 2**63 + 1, 5, -3], (4, 3, 2))
    assert noise.shape == (4, 4, 3, 2)
    assert noise.dtype == torch.float32
    assert torch.equal(noise[0], noise[2])
    assert torch.equal(noise[3], draw_latents([-3], (4, 3, 2))[0])
    assert not torch.equal(noise[0], noise[1])
    assert torch.equal(noise[0], torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(5)))


def test_one_generator_a_sample(models):
    decoder, golden, sizes = vars(models("bsq64")).values()
    settings = {"num_inference_steps": 1, "output_type": "latent"}
    generators = [torch.Generator().manual_seed(seed) for seed in (4, 9)]
    together = decoder.decode(golden["rect.ids"], *sizes["rect"], generator=generators, **settings)
    seeded = decoder.decode(golden["rect.ids"], *sizes["rect"], noise_seeds=[4, 9], **settings)
    close(together, seeded, 1e-6)


@pytest.mark.parametrize(("guidance_scale", "rows"), [(0.0, 2), (1.0, 2), (1.01, 4)])
def test_the_unconditional_branch_runs_only_when_guidance_needs_it(models, guidance_scale, rows):
    decoder, golden, sizes = vars(models("bsq64")).values()
    seen = []
    hook = decoder.sd3_transformer.proj_out.register_forward_hook(lambda module, inputs, out: seen.append(len(out)))
    try:
        decoder.decode(golden["rect.ids"], *sizes["rect"], num_inference_steps=3, guidance_scale=guidance_scale)
    finally:
        hook.remove()
    assert seen == [rows] * 3


@pytest.mark.parametrize(("height", "width", "ratio"), [(32, 128, 2.0), (96, 32, 1.5), (64, 96, 1.5), (96, 96, 4 / 3)])
def test_every_aspect_ratio_is_upsampled(models, height, width, ratio):
    bits = torch.ones(1, height * width // 32**2, 4, 4, 8, dtype=torch.uint8)
    (image,) = models("bsq8").decoder.decode(bits, height, width, ratio, num_inference_steps=1, noise_seeds=[0])
    assert image.size == (round(width * ratio), round(height * ratio))


def test_a_changed_token_changes_its_own_corner_most(models):
    """Non-square and upsampled: the token's place in the image is its place in the grid."""
    decoder = models("bsq8").decoder
    bits = torch.zeros(1, 8, 4, 4, 8, dtype=torch.uint8)
    changed = bits.clone()
    changed[:, 3, :, :, ::3] = 1  # top right of 2 rows × 4 columns
    grids = [
        decoder.sd3_transformer.prepare_siglip_tensor(decoder.encode_features(b, (2, 4)), (4, 8), (8, 16))
        for b in (bits, changed)
    ]
    effect = (grids[0] - grids[1]).abs().sum(-1).view(2, 4, 4, 4).sum((1, 3))  # token rows × token columns
    assert effect.argmax() == 3
    assert effect[0, 3] > 10 * effect[:, :2].max()


# --- bad input


@pytest.mark.parametrize(
    ("variant", "size", "message"),
    [
        ("bsq8", (48, 64, 1.0), "height 48 is not a multiple of 32.*32 and 64"),
        ("bsq8", (64, 64, 0.5), "upsampling_ratio is 0.5; it must be 1 to 2"),
        ("bsq8", (64, 64, float("nan")), "upsampling_ratio is nan"),
        ("bsq8", (64, 64, 1.1), r"64×64.*70×70.*64×64 \(upsampling_ratio 1\) and 80×80 \(upsampling_ratio 1.25\)"),
        ("bsq8", (64, 96, 1.7), r"96×144 \(upsampling_ratio 1.5\) and 128×192 \(upsampling_ratio 2\)"),
        (
            "bsq8",
            (224, 224, 2.0),
            r"448×448.*at most 384.*nearest valid sizes are 384×384 \(upsampling_ratio 1.71429\)",
        ),
        ("bsq8", (32, 416, 1.0), "must be at most 384 pixels; choose a smaller AR size"),
        ("bsq64", (64, 64, 2.0), "no super-resolution, so it must be 1"),
    ],
)
def test_sizes_that_do_not_fit_name_the_nearest_that_do(models, variant, size, message):
    with pytest.raises(UserError, match=message):
        models(variant).decoder.output_size(*size)


def test_the_ratio_that_an_error_proposes_is_accepted(models):
    assert models("bsq8").decoder.output_size(224, 224, 1.71429) == (384, 384)
    assert models("bsq8").decoder.latent_shape(224, 224, 1.71429) == (4, 48, 48)


def test_decode_refuses_what_it_cannot_mean(models):
    decoder, golden, sizes = vars(models("bsq8")).values()
    indices, size = golden["sq.ids"], sizes["sq"]
    with pytest.raises(ValueError, match=r"\(2, 4, 4, 4\); a grid of 2×3 needs .*\(B, 6, 4, 4\)"):
        decoder.decode(indices, 64, 96)
    with pytest.raises(ValueError, match="codes of 8 bits have 0 to 255"):
        decoder.decode(indices - 256, *size)
    with pytest.raises(ValueError, match="visual tokens are"):
        decoder.decode(indices[:0], *size)
    with pytest.raises(ValueError, match="generator and noise_seeds are given"):
        decoder.decode(indices, *size, generator=torch.Generator(), noise_seeds=[1, 2])
    with pytest.raises(ValueError, match="noise_seeds has 1 entries for 2 samples"):
        decoder.decode(indices, *size, noise_seeds=[1])
    with pytest.raises(ValueError, match=r"latents are \(2, 4, 8, 8\); they must be \(2, 4, 16, 16\)"):
        decoder.decode(indices, *size, latents=torch.zeros(2, 4, 8, 8))
    with pytest.raises(ValueError, match="'pil', 'pt' or 'latent'"):
        decoder.decode(indices, *size, output_type="np")
    with pytest.raises(UserError, match="num_inference_steps is 0"):
        decoder.decode(indices, *size, num_inference_steps=0)
    with pytest.raises(UserError, match="batch_size is 0"):
        decoder.decode(indices, *size, batch_size=0)


def test_a_failed_decode_is_an_error_not_a_black_image(models):
    decoder, golden, sizes = vars(models("bsq64")).values()
    latents = golden["rect.latents"].clone()
    latents[1, 0, 0, 0] = float("nan")
    with pytest.raises(RunError, match="sample 1"):
        decoder.decode(golden["rect.ids"], *sizes["rect"], num_inference_steps=1, latents=latents, batch_size=1)
