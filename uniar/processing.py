"""Prompts and images → prefix ids, masks and rotary positions (docs/checkpoint-format.md, 6).

Shapes: U prompts · P prefix positions · T visual tokens to draw.
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from uniar.conversations import Message, encode_turns
from uniar.drawing_model import DrawingModel
from uniar.errors import UserError
from uniar.reading.pictures import in_rgb
from uniar.turn_prompt import TurnPrompt


def check_size(height: int, width: int, pixels_per_token: int, where: str = "") -> None:
    """Raises UserError when a side is not a positive multiple of patch × merge, naming the nearest sizes that are.
    `where` stands before the side's name."""
    for name, side in (("height", height), ("width", width)):
        if side <= 0 or side % pixels_per_token:
            below = max(side // pixels_per_token, 1) * pixels_per_token
            nearest = sorted({below, below + pixels_per_token})
            raise UserError(
                f"{where}{name} {side} is not a multiple of {pixels_per_token} pixels (patch × merge); "
                f"the nearest valid sizes are {' and '.join(map(str, nearest))}."
            )


def build_visual_prompt(
    prompts: Sequence[str],
    model: DrawingModel,
    processor: Any,
    *,
    height: int,
    width: int,
    input_images: Sequence[Image.Image | Sequence[Image.Image] | None] | None = None,
    unconditional: bool = True,
) -> TurnPrompt:
    """The prefix of each prompt for an image of height × width pixels, and its unconditional branch.

    `input_images` gives each prompt its image (or images) to edit, or None; the processor resizes them. Without any one
    unconditional row serves all prompts. Raises UserError for an invalid size, no prompts, a prompt that holds an
    image's token, or uneven lists.
    """
    vision = model.config.vision_config
    check_size(height, width, vision.pixels_per_token)
    if not prompts:
        raise UserError("there are no prompts to draw.")
    if input_images is not None and len(input_images) != len(prompts):
        raise UserError(f"{len(prompts)} prompts came with {len(input_images)} input images; give each prompt its own.")
    given = [_listed(images) for images in input_images or [None] * len(prompts)]
    return encode_turns(
        [[Message("user", (prompt, *images))] for prompt, images in zip(prompts, given, strict=True)],
        model,
        processor,
        grid=(height // vision.pixels_per_token, width // vision.pixels_per_token),
        unconditional=unconditional,
    )


def _listed(images: Image.Image | Sequence[Image.Image] | None) -> Sequence[Image.Image]:
    return [images] if isinstance(images, Image.Image) else images or ()


def prepare_visual_inputs(
    prompts: Sequence[str],
    model: DrawingModel,
    processor: Any,
    ar_height: int,
    ar_width: int,
    input_images: Sequence[Image.Image | Sequence[Image.Image] | None] | None = None,
) -> dict[str, Any]:
    """Inputs of `generate_visual`, as the model card's snippet uses them: 2B rows, conditional then unconditional.

    Keys: prefix_input_ids and attention_mask (2B, P), pos_ids_all (3, 2B, P + T), pos_ids_image (3, 2B, T),
    image_token_num (T), and when editing pixel_values and input_image_grid_thw of all 2B rows.
    """
    prompt = build_visual_prompt(prompts, model, processor, height=ar_height, width=ar_width, input_images=input_images)
    unconditional = prompt.unconditional
    assert unconditional is not None  # build_visual_prompt makes it unless it is told not to
    rows, width = len(prompt), max(prompt.input_ids.shape[1], unconditional.input_ids.shape[1])
    pad_id = processor.tokenizer.pad_token_id

    def both(name: str, fill: int) -> Tensor:
        halves = []
        for half in (prompt, unconditional):
            tensor = getattr(half, name)
            missing = width - half.input_ids.shape[1]
            padded = torch.nn.functional.pad(tensor, (missing, 0), value=fill)
            row_axis = padded.ndim - 2
            if padded.shape[row_axis] != rows:
                padded = padded.expand(*padded.shape[:row_axis], rows, -1)
            halves.append(padded)
        return torch.cat(halves, dim=-2)

    positions = both("position_ids", 0)
    inputs = {
        "prefix_input_ids": both("input_ids", pad_id),
        "attention_mask": both("attention_mask", 0),
        "pos_ids_all": positions,
        "pos_ids_image": positions[:, :, width:],
        "image_token_num": prompt.new_tokens,
    }
    if images := [in_rgb(image) for given in input_images or () for image in _listed(given)]:
        made = processor.image_processor(images=images, return_tensors="pt").to(model.device)
        inputs["pixel_values"] = torch.cat([made["pixel_values"]] * 2)
        inputs["input_image_grid_thw"] = torch.cat([made["image_grid_thw"]] * 2)
    return inputs
