"""The visual decoder's folders: what is missing, damaged or of another kind is named."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from rl.cli import main
from uniar.configuration_uniar import UniARVisionConfig
from uniar.decoder_parts import DECODER_PROMPT
from uniar.decoder_sizes import RELEASED_SIDE, DecoderSizes
from uniar.errors import UserError
from uniar.modeling_decoder import UniARVisualDecoder

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def checkpoint(tmp_path):
    parts = ("bsq_encoder", "sd3_transformer", "sd3_pipeline")
    for part in parts:
        shutil.copytree(GOLDEN / "bsq64" / "ckpt" / part, tmp_path / part)
    return tmp_path


def change_weights(file, change):
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "part",
    [
        "bsq_encoder",
        "sd3_transformer",
        *(f"sd3_pipeline/{name}" for name in ("vae", "scheduler", "text_encoder_3", "tokenizer", "tokenizer_3")),
    ],
)
def test_a_missing_part_is_named(checkpoint, part):
    shutil.rmtree(checkpoint / part)
    with pytest.raises(UserError, match=f"{checkpoint} has no {part}/.*, which the visual decoder needs"):
        UniARVisualDecoder.from_pretrained(checkpoint)


def test_missing_weights_are_named(checkpoint):
    (checkpoint / "sd3_pipeline/vae/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"sd3_pipeline/vae has no weights: neither diffusion_pytorch_model\.safetensors\."
    ):
        UniARVisualDecoder.from_pretrained(checkpoint)


@pytest.mark.parametrize(
    ("file", "tensor"),
    [
        ("bsq_encoder/model.safetensors", "bsq_output_proj.norm.weight"),
        ("sd3_transformer/diffusion_pytorch_model.safetensors", "siglip_embed_add_latent.weight"),
        ("sd3_pipeline/vae/diffusion_pytorch_model.safetensors", "decoder.conv_in.weight"),
        ("sd3_pipeline/text_encoder_3/model.safetensors", "encoder.final_layer_norm.weight"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(checkpoint, file, tensor):
    target, source = checkpoint / file, GOLDEN / "bsq64" / "ckpt" / file
    change_weights(target, lambda weights: weights.pop(tensor))
    with pytest.raises(UserError, match=f"{target.parent}: tensor {tensor} is missing from the weights"):
        UniARVisualDecoder.from_pretrained(checkpoint)
    shutil.copyfile(source, target)
    change_weights(target, lambda weights: weights.update({tensor: weights[tensor][1:].clone()}))
    with pytest.raises(UserError, match=f"{target.parent}: tensor {tensor} has shape"):
        UniARVisualDecoder.from_pretrained(checkpoint)


def test_a_part_of_another_kind_or_a_broken_file_is_named(checkpoint):
    config = checkpoint / "sd3_transformer" / "config.json"
    original = config.read_text()
    config.write_text(original.replace("SD3Transformer2DModelWithSigLIP", "FluxTransformer2DModel"))
    with pytest.raises(UserError, match="'FluxTransformer2DModel'; it must be 'SD3Transformer2DModelWithSigLIP'"):
        UniARVisualDecoder.from_pretrained(checkpoint)
    config.write_text("{")
    with pytest.raises(UserError, match=f"'{config}' is not whole, valid JSON"):
        UniARVisualDecoder.from_pretrained(checkpoint)
    config.write_text(original)
    (checkpoint / "sd3_pipeline/tokenizer_3/tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer_3 holds no tokenizer that loads"):
        UniARVisualDecoder.from_pretrained(checkpoint)


def test_the_prompt_is_as_long_as_diffusers_makes_it(checkpoint):
    """Whatever the tokenizer calls its longest text, unless the checkpoint says so under a key of ours."""
    config = checkpoint / "sd3_pipeline" / "tokenizer_3" / "tokenizer_config.json"
    original = config.read_text()
    config.write_text(original.replace('"model_max_length": 512', '"model_max_length": 32'))
    assert UniARVisualDecoder.from_pretrained(checkpoint).prompt_embeds.shape[1] == 77 + 256
    config.write_text(original.replace("{", '{"max_sequence_length": 32,', 1))
    assert UniARVisualDecoder.from_pretrained(checkpoint).prompt_embeds.shape[1] == 77 + 32
    for length in ("0", '"all"', "true", "1.5"):
        config.write_text(original.replace("{", f'{{"max_sequence_length": {length},', 1))
        with pytest.raises(UserError, match=r"tokenizer_config.json says max_sequence_length .* whole number"):
            UniARVisualDecoder.from_pretrained(checkpoint)
    assert DECODER_PROMPT == "Please reconstruct this image and restore all the details."


def test_defaults_are_those_of_uniars_own_package(checkpoint):
    """bfloat16, on the CPU until it is moved; the size that a decoder without super-resolution can draw."""
    decoder = UniARVisualDecoder.from_pretrained(str(checkpoint))
    assert (decoder.dtype, decoder.device) == (torch.bfloat16, torch.device("cpu"))
    ids = torch.zeros(1, 4, 4, 4, dtype=torch.int64)
    (image,) = decoder.decode(visual_generated_ids=ids, ar_height=64, ar_width=64, num_inference_steps=1)
    assert image.size == (64, 64)
    with pytest.raises(UserError, match=r"upsampling_ratio is 2\.0; .* it must be 1\."):
        decoder.decode(ids, 64, 64, 2.0)


@pytest.mark.parametrize(
    ("sd3", "side"),
    [
        ({"super_resolution": True, "sample_size": 128}, 512),  # as released
        ({"super_resolution": True, "sample_size": 64}, 256),
        ({"super_resolution": True}, 512),
        ({"super_resolution": False, "sample_size": 16}, 128),
        ({"super_resolution": True, "sample_size": 9}, RELEASED_SIDE),
        ({"super_resolution": True, "sample_size": 0}, RELEASED_SIDE),
    ],
)
def test_the_size_that_a_decoder_was_made_for(sd3, side):
    vision = UniARVisionConfig(patch_size=16, spatial_merge_size=2)
    assert DecoderSizes.of(vision, sd3, {"block_out_channels": [1, 1, 1, 1]}).default_side == side


@pytest.mark.parametrize(("folder", "side"), [("tests/golden/bsq8/ckpt", 64), ("assets/uniar-tiny", 64)])
def test_generate_draws_in_that_size(folder, side, tmp_path):
    output = tmp_path / "drawn.png"
    checkpoint = str(GOLDEN.parents[1] / folder)
    assert (
        main(["generate", "--model", checkpoint, "--prompt", "a circle", "--steps", "1", "--output", str(output)]) == 0
    )
    assert Image.open(output).size == (side, side)
    edited = ["edit", "--model", checkpoint, "--image", str(output), "--prompt", "a square", "--steps", "1"]
    assert main([*edited, "--output", str(tmp_path / "edited.png")]) == 0
