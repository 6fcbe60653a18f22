"""Inputs for tests of the AR model and the rollout engine: the reference's vectors, prompts, what was drawn."""

import numpy as np
import torch
from PIL import Image

from uniar.engine.memory import sample_bytes
from uniar.generation import draw_noise
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.processing import build_visual_prompt
from uniar.turn_prompt import append_image_tokens

PROMPTS = ["a photo of a red apple on a wooden table", "two cats"]


def close(found, expected, tolerance=1e-4):
    torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=tolerance)


def load(golden, **settings):
    """A model of its own, for tests that change it."""
    settings = {"torch_dtype": torch.float32, "attn_implementation": "eager"} | settings
    return UniARForConditionalGeneration.from_pretrained(golden.checkpoint, **settings)


def drawn_inputs(golden):
    vectors = golden.tensors("vistok_forward")
    names = ("input_ids", "attention_mask", "image_grid_thw")
    return {name: vectors[name] for name in names} | {
        "online_rollout_codes": vectors["codes"].long(),
        "is_vistok_pred": True,
    }


def reading_inputs(golden, batch=False):
    """One image and its question, or two of different sizes and lengths."""
    vectors, prefix = golden.tensors("understanding"), "batch_" if batch else ""
    inputs = {name: vectors[prefix + name] for name in ("input_ids", "attention_mask", "image_grid_thw")}
    inputs["pixel_values"] = golden.pixels()[:36]
    if batch:
        second = golden.processor.image_processor([Image.fromarray(vectors["image_b1"].numpy())], return_tensors="pt")
        inputs["pixel_values"] = torch.cat([inputs["pixel_values"], second["pixel_values"]])
    return inputs


def as_bits(model, inputs):
    """The same inputs with the images as visual bits."""
    bits = model.model.visual.encode(inputs["pixel_values"], inputs["image_grid_thw"])
    return {name: value for name, value in inputs.items() if name != "pixel_values"} | {"visual_bits": bits}


def editing_inputs(golden, cfg="1.0"):
    """Prefixes with an image to edit, the drawn tokens behind them, and the reference's step logits (B, T, …)."""
    tag = next(key for key in golden.tensors("visual_inputs") if key.startswith("edit")).split(".")[0]
    prefix = {
        key.removeprefix(f"{tag}."): value
        for key, value in golden.tensors("visual_inputs").items()
        if key.startswith(tag)
    }
    drawn = golden.tensors("generate_visual")
    bits = drawn[f"{tag}_cfg{cfg}.raw_codes"]
    rows, tokens = bits.shape[:2]
    tail = torch.ones(rows, tokens, dtype=torch.long)
    height, width = (int(side) // 16 for side in tag.split("_")[1].split("x"))
    grids = torch.cat(
        [prefix["input_image_grid_thw"].view(rows, 1, 3), torch.tensor([1, height, width]).expand(rows, 1, 3)], 1
    )
    pixels = golden.pixels("visual_inputs", f"{tag}.")
    return {
        "input_ids": torch.cat([prefix["prefix_input_ids"], tail * golden.model().config.image_token_id], 1),
        "attention_mask": torch.cat([prefix["attention_mask"], tail], 1),
        "image_grid_thw": grids.view(-1, 3),
        "pixel_values": torch.cat([pixels, pixels]),
        "online_rollout_codes": bits,
        "is_vistok_pred": True,
    }, drawn[f"{tag}_cfg{cfg}.logits"].transpose(0, 1)


def answer(model, inputs, **settings):
    settings = {"max_new_tokens": 8, "do_sample": False} | settings
    return model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]


def any_noise(model, prompt, samples, seed=0):
    return draw_noise(range(seed, seed + samples), prompt.new_tokens, model.config.vision_config.code_shape)


def picture(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def text_prompt(golden, height=64, width=96, prompts=PROMPTS, **settings):
    return build_visual_prompt(prompts, golden.model(), golden.processor, height=height, width=width, **settings)


def edit_prompt(golden):
    images = [picture(64, 64), picture(96, 64, 1)]
    return text_prompt(golden, 64, 64, ["make it blue", "remove the cup from the table"], input_images=images)


def one_sample_budget(model, prompt):
    """Bytes that hold one sample of a prompt, guided."""
    return sample_bytes(model, prompt.input_ids.shape[1], prompt.new_tokens, 2)


def replayed_gap(model, branch, bits, prompt_index):
    """Teacher-forced gaps of the drawn bits."""
    rows = branch.rows(prompt_index)
    ids, mask = append_image_tokens(rows.input_ids, rows.attention_mask, bits.shape[1], model.config.image_token_id)
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=rows.position_ids,
        visual_bits=rows.visual_bits,
        online_rollout_codes=bits,
        is_vistok_pred=True,
    ).logits
    return logits[..., 1] - logits[..., 0]
