"""Prompts and images → prefix ids, masks and rotary positions (docs/checkpoint-format.md, 6).

Shapes: U prompts · P prefix positions · T visual tokens to draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from uniar.drawing_model import DrawingModel
from uniar.errors import UserError
from uniar.reading.pictures import in_rgb
from uniar.reading.prompt_text import refuse_tokens, reserved_tokens


@dataclass(frozen=True)
class VisualPrompt:
    """What comes before the visual tokens of U images of one size, left-padded."""

    input_ids: Tensor
    """(U, P) int64"""
    attention_mask: Tensor
    """(U, P) int64, 0 on the padding"""
    position_ids: Tensor
    """(3, U, P + T) int64 rotary positions of prefix and drawn tokens"""
    pixel_values: Tensor | None = None
    """patches of the images to edit, row by row, as the processor makes them"""
    image_grid_thw: Tensor | None = None
    """(images to edit, 3) int64, in patches"""
    unconditional: "VisualPrompt | None" = None
    """the branch without the text: one row that serves every prompt, or U rows (editing: each keeps its image)"""

    @property
    def image_token_num(self) -> int:
        """T"""
        return self.position_ids.shape[-1] - self.input_ids.shape[1]

    def __len__(self) -> int:
        return len(self.input_ids)

    def rows(self, numbers: Sequence[int]) -> "VisualPrompt":
        """The prompts at `numbers` with their images, and their rows of the unconditional branch (or the one it
        has)."""
        chosen = torch.tensor(list(numbers), dtype=torch.long, device=self.input_ids.device)
        pixels = grids = None
        if self.pixel_values is not None and self.image_grid_thw is not None:
            grids = self.image_grid_thw.view(len(self), -1, 3)
            patches = self.pixel_values.split(grids.prod(-1).sum(1).tolist())
            pixels = torch.cat([patches[number] for number in numbers])
            grids = grids[chosen.to(grids.device)].view(-1, 3)
        unconditional = self.unconditional
        return VisualPrompt(
            self.input_ids[chosen],
            self.attention_mask[chosen],
            self.position_ids[:, chosen],
            pixels,
            grids,
            unconditional if unconditional is None or len(unconditional) == 1 else unconditional.rows(numbers),
        )

    def to(self, device: torch.device | str) -> "VisualPrompt":
        moved = {
            name: value.to(device)
            for name in ("input_ids", "attention_mask", "position_ids", "pixel_values", "image_grid_thw")
            if (value := getattr(self, name)) is not None
        }
        unconditional = None if self.unconditional is None else self.unconditional.to(device)
        return replace(self, **moved, unconditional=unconditional)


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
    input_images: Sequence[Image.Image | Sequence[Image.Image]] | None = None,
    unconditional: bool = True,
) -> VisualPrompt:
    """The prefix of each prompt for an image of height × width pixels, and its unconditional branch.

    `input_images` gives each prompt its image (or images) to edit; the processor resizes them. Without them one
    unconditional row serves all prompts. Raises UserError for an invalid size, no prompts, a prompt that holds an
    image's token, or uneven lists.
    """
    vision = model.config.vision_config
    check_size(height, width, vision.pixels_per_token)
    if not prompts:
        raise UserError("there are no prompts to draw.")
    if input_images is not None and len(input_images) != len(prompts):
        raise UserError(f"{len(prompts)} prompts came with {len(input_images)} input images; give each prompt its own.")
    tokens = reserved_tokens(processor)
    for prompt in prompts:
        refuse_tokens(prompt, f"the prompt {prompt!r}", tokens)
    grid = (height // vision.pixels_per_token, width // vision.pixels_per_token)
    images = None
    if input_images is not None:
        images = [[in_rgb(i) for i in ([given] if isinstance(given, Image.Image) else given)] for given in input_images]

    if images is not None and (len({len(given) for given in images}) > 1 or not images[0]):
        counts = [len(given) for given in images]
        raise UserError(f"the prompts have {counts} input images; each needs the same number, 1 or more.")

    conditional = _encode(list(prompts), images, grid, model, processor)
    if not unconditional:
        return conditional
    dropped = [""] * (1 if images is None else len(prompts))
    return replace(conditional, unconditional=_encode(dropped, images, grid, model, processor))


def prefix_multiple(model: DrawingModel) -> int:
    """What the width P of a prefix is a multiple of. GPU kernels copy a mask whose rows are not aligned, and few widths
    are few shapes to plan and compile for. In float32 on a CPU, where neither counts, sums keep the order they have."""
    return 1 if model.device.type == "cpu" and model.dtype == torch.float32 else 32


def _encode(
    prompts: list[str],
    images: list[list[Image.Image]] | None,
    grid: tuple[int, int],
    model: DrawingModel,
    processor: Any,
) -> VisualPrompt:
    texts = []
    for number, prompt in enumerate(prompts):
        given = [] if images is None else images[number]
        content = [
            {"type": "text", "text": prompt},
            *({"type": "image", "image": image} for image in given),
            {"type": "text", "text": f"<image_gen> generate image {grid[0]} {grid[1]}"},
        ]
        messages = [{"role": "user", "content": content}]
        texts.append(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    encoded = processor(
        text=[text + "<|vision_start|>" for text in texts],
        images=images,
        padding=True,
        padding_side="left",
        pad_to_multiple_of=prefix_multiple(model),
        return_tensors="pt",
    )
    input_ids, attention_mask = encoded["input_ids"], encoded["attention_mask"]
    given_grids = encoded.get("image_grid_thw")
    position_ids = drawing_positions(input_ids, attention_mask, grid, model, given_grids)
    pixels = encoded.get("pixel_values")
    return VisualPrompt(input_ids, attention_mask, position_ids, pixels, given_grids).to(model.device)


def drawing_positions(
    input_ids: Tensor,
    attention_mask: Tensor,
    grid: tuple[int, int],
    model: DrawingModel,
    given_grids: Tensor | None = None,
) -> Tensor:
    """(3, U, P + T) rotary positions of left-padded prefixes and the grid of (rows, columns) tokens behind them."""
    rows, tokens = len(input_ids), grid[0] * grid[1]
    ids, mask = append_image_tokens(input_ids, attention_mask, tokens, model.config.image_token_id)
    grids = append_drawn_grid(given_grids, grid, rows, model.config.vision_config.spatial_merge_size)
    return model.model.rotary_positions(ids, mask, grids.to(ids.device))


def append_image_tokens(
    input_ids: Tensor, attention_mask: Tensor, tokens: int, image_token_id: int
) -> tuple[Tensor, Tensor]:
    """Prefix ids and mask (U, P) → (U, P + tokens) with as many image tokens behind them."""
    tail = input_ids.new_full((len(input_ids), tokens), image_token_id)
    return torch.cat([input_ids, tail], 1), torch.cat([attention_mask, torch.ones_like(tail)], 1)


def append_drawn_grid(given_grids: Tensor | None, grid: tuple[int, int], rows: int, merge: int) -> Tensor:
    """Grids of all images row by row, in patches: each row's images to edit, then the one to draw."""
    drawn = torch.tensor([[1, grid[0] * merge, grid[1] * merge]])
    if given_grids is None:
        return drawn.expand(rows, 3)
    given = given_grids.view(rows, -1, 3)
    return torch.cat([given, drawn.to(given.device).expand(rows, 1, 3)], 1).reshape(-1, 3)


def prepare_visual_inputs(
    prompts: Sequence[str],
    model: DrawingModel,
    processor: Any,
    ar_height: int,
    ar_width: int,
    input_images: Sequence[Image.Image | Sequence[Image.Image]] | None = None,
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
        "image_token_num": prompt.image_token_num,
    }
    if prompt.pixel_values is not None:
        inputs["pixel_values"] = torch.cat([prompt.pixel_values, unconditional.pixel_values])
        inputs["input_image_grid_thw"] = torch.cat([prompt.image_grid_thw, unconditional.image_grid_thw])
    return inputs
