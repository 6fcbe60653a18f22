"""Captions and visual bits → the inputs of a drawing, for many samples at once and without an image processor.

Shapes: B rows · P positions · T = 16 visual tokens per image · L levels · S patches per token · K bits per code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rl.tiny.stages.model import GRID
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.turn_prompt import append_image_tokens, drawing_positions

TOKENS = GRID**2


@dataclass(frozen=True)
class Rows:
    """Rows of text with the places of T image tokens for each image."""

    input_ids: Tensor
    """(B, P)"""
    attention_mask: Tensor
    """(B, P)"""
    position_ids: Tensor
    """(3, B, P)"""


def drawing_rows(
    model: UniARForConditionalGeneration, processor: Any, prompts: Sequence[str], *, editing: bool = False
) -> Rows:
    """Prefixes of images to draw (docs/checkpoint-format.md, 6), T image tokens behind them; `editing`: with an image
    in them."""
    contents = []
    for prompt in prompts:
        given = [{"type": "image"}] if editing else []
        wanted = {"type": "text", "text": f"<image_gen> generate image {GRID} {GRID}"}
        contents.append([{"type": "text", "text": prompt}, *given, wanted])
    encoded = processor.tokenizer(
        [_chat(processor, content) + "<|vision_start|>" for content in contents],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    ids, mask, grid = encoded["input_ids"], encoded["attention_mask"], (GRID, GRID)
    positions = drawing_positions(ids, mask, grid, model, [[grid] if editing else []] * len(ids))
    return Rows(*append_image_tokens(ids, mask, TOKENS, model.config.image_token_id), positions)


def drawn_gaps(
    model: UniARForConditionalGeneration, rows: Rows, bits: Tensor, given_bits: Tensor | None = None
) -> Tensor:
    """Logit gaps (B, T, L, S, K) of the drawn bits, teacher-forced on `bits`; `given_bits` are the images to edit."""
    logits = model(
        input_ids=rows.input_ids,
        attention_mask=rows.attention_mask,
        position_ids=rows.position_ids,
        online_rollout_codes=bits,
        visual_bits=given_bits,
        is_vistok_pred=True,
    ).logits.float()
    return logits[..., 1] - logits[..., 0]


def _chat(processor: Any, content: list[dict[str, str]]) -> str:
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return text.replace(processor.image_token, processor.image_token * TOKENS)
