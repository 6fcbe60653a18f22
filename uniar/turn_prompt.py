"""What comes before a turn of the model, be it a picture or text: ids, mask, rotary positions, pictures as bits.

Shapes: U conversations · P prefix positions · T new tokens · L levels · S patches per token · K bits per code.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from uniar.drawing_model import DrawingModel

Grid: TypeAlias = tuple[int, int]
"""(rows, columns) of a picture's visual tokens"""


@dataclass(frozen=True)
class TurnPrompt:
    """What comes before a turn, of U conversations, left-padded."""

    input_ids: Tensor
    """(U, P) int64"""
    attention_mask: Tensor
    """(U, P) int64, 0 on the padding"""
    position_ids: Tensor
    """(3, U, P + T) int64 rotary positions of the prefix and of the new tokens"""
    visual_bits: Tensor | None = None
    """(image tokens of all rows, L, S, K) uint8, row by row; None where no row has a picture"""
    image_tokens: tuple[int, ...] = ()
    """U numbers, how many of `visual_bits` each row has; rows may differ"""
    unconditional: "TurnPrompt | None" = None
    """the branch without the text: one row that serves every conversation, or U rows, as each keeps its pictures"""

    @property
    def new_tokens(self) -> int:
        """T"""
        return self.position_ids.shape[-1] - self.input_ids.shape[1]

    def __len__(self) -> int:
        return len(self.input_ids)

    def pictures(self) -> list[Tensor] | None:
        """The bits of each row's pictures, U tensors (n, L, S, K) with n from 0 on; None where no row has any."""
        return None if self.visual_bits is None else list(self.visual_bits.split(self.image_tokens))

    def rows(self, numbers: Sequence[int]) -> "TurnPrompt":
        """The conversations at `numbers` with their pictures, and their rows of the unconditional branch (or the one
        it has)."""
        chosen = torch.tensor(list(numbers), dtype=torch.long, device=self.input_ids.device)
        pictures, bits = self.pictures(), None
        counts: tuple[int, ...] = (0,) * len(chosen)
        if pictures is not None:
            counts = tuple(self.image_tokens[number] for number in numbers)
            bits = torch.cat([pictures[number] for number in numbers]) if any(counts) else None
        unconditional = self.unconditional
        return TurnPrompt(
            self.input_ids[chosen],
            self.attention_mask[chosen],
            self.position_ids[:, chosen],
            bits,
            counts,
            unconditional if unconditional is None or len(unconditional) == 1 else unconditional.rows(numbers),
        )

    def to(self, device: torch.device | str) -> "TurnPrompt":
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            position_ids=self.position_ids.to(device),
            visual_bits=None if self.visual_bits is None else self.visual_bits.to(device),
            unconditional=None if self.unconditional is None else self.unconditional.to(device),
        )


def owners(prompt: TurnPrompt, samples: int, prompt_index: Sequence[int] | None) -> Sequence[int]:
    """The conversation of each of so many samples: `prompt_index`, or the same number of samples for each.

    Raises ValueError where that does not fit.
    """
    count = len(prompt)
    if prompt_index is None:
        if samples % count:
            raise ValueError(f"{samples} samples cannot be divided evenly over {count} prompts; give prompt_index.")
        prompt_index = [sample * count // samples for sample in range(samples)]
    if not samples or len(prompt_index) != samples or not all(0 <= owner < count for owner in prompt_index):
        raise ValueError(f"{samples} samples cannot be divided over {count} prompts as {list(prompt_index)}.")
    return prompt_index


def prefix_multiple(model: DrawingModel) -> int:
    """What the width P of a prefix is a multiple of. GPU kernels copy a mask whose rows are not aligned, and few widths
    are few shapes to plan and compile for. In float32 on a CPU, where neither counts, sums keep the order they have."""
    return 1 if model.device.type == "cpu" and model.dtype == torch.float32 else 32


def drawing_positions(
    input_ids: Tensor,
    attention_mask: Tensor,
    grid: Grid,
    model: DrawingModel,
    given: Sequence[Sequence[Grid]] = (),
) -> Tensor:
    """(3, U, P + T) rotary positions of left-padded prefixes and the grid of (rows, columns) tokens behind them.

    given: the grids of each row's pictures; empty where there are none at all.
    """
    ids, mask = append_image_tokens(input_ids, attention_mask, grid[0] * grid[1], model.config.image_token_id)
    rows = [[*own, grid] for own in given or [()] * len(input_ids)]
    grids = patch_grids(rows, model.config.vision_config.spatial_merge_size)
    return model.model.rotary_positions(ids, mask, grids.to(ids.device))


def text_positions(
    input_ids: Tensor,
    attention_mask: Tensor,
    new_tokens: int,
    model: DrawingModel,
    given: Sequence[Sequence[Grid]] = (),
) -> Tensor:
    """The same, of `new_tokens` tokens of text behind the prefixes: all axes go on from the largest position."""
    grids = patch_grids(given, model.config.vision_config.spatial_merge_size)
    prefix = model.model.rotary_positions(input_ids, attention_mask, grids.to(input_ids.device))
    last = prefix.masked_fill(attention_mask == 0, -1).amax((0, 2))
    behind = last[:, None] + torch.arange(1, new_tokens + 1, device=prefix.device)
    return torch.cat([prefix, behind.expand(3, -1, -1)], -1)


def append_image_tokens(
    input_ids: Tensor, attention_mask: Tensor, tokens: int, image_token_id: int
) -> tuple[Tensor, Tensor]:
    """Prefix ids and mask (U, P) → (U, P + tokens) with as many image tokens behind them."""
    tail = input_ids.new_full((len(input_ids), tokens), image_token_id)
    return torch.cat([input_ids, tail], 1), torch.cat([attention_mask, torch.ones_like(tail)], 1)


def patch_grids(rows: Sequence[Sequence[Grid]], merge: int) -> Tensor:
    """The grids of all pictures row by row → (pictures, 3) int64 in patches, of which a token has `merge` each way."""
    every = [(1, height * merge, width * merge) for row in rows for height, width in row]
    return torch.tensor(every, dtype=torch.long).view(-1, 3)
