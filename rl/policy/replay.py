"""The policy replayed: drawn bits → the raw logit gaps of each branch, teacher-forced.

Shapes: B samples · P prefix positions · T visual tokens · L levels · S patches per token · K bits per code.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rl.algorithm.guidance import Gaps, GuidanceSettings
from uniar.turn_prompt import TurnPrompt, append_image_tokens


@dataclass(frozen=True)
class Branch:
    """What one branch is fed besides the bits, one row per sample: its prefix and T image tokens behind it."""

    input_ids: Tensor
    """(B, P + T)"""
    attention_mask: Tensor
    """(B, P + T)"""
    position_ids: Tensor
    """(B, 3, P + T)"""
    visual_bits: list[Tensor] | None = None
    """(n, L, S, K) of each sample's pictures, n from 0 on; None where no sample has any"""

    @classmethod
    def of(cls, prompt: TurnPrompt, prompt_index: Tensor, image_token_id: int) -> "Branch":
        """Rows of `prompt` repeated for the samples that `prompt_index` (B,) assigns to them."""
        if len(prompt) == 1:
            prompt_index = torch.zeros_like(prompt_index)
        pictures = prompt.pictures()
        if pictures is not None:
            pictures = [pictures[owner] for owner in prompt_index.tolist()]
        ids, mask = append_image_tokens(prompt.input_ids, prompt.attention_mask, prompt.new_tokens, image_token_id)
        return cls(ids[prompt_index], mask[prompt_index], prompt.position_ids.transpose(0, 1)[prompt_index], pictures)


def replay(
    model: Callable[..., Any], bits: Tensor, prompt: Branch, unconditional: Branch | None, guidance: GuidanceSettings
) -> Gaps:
    """Teacher-forced raw gaps of `bits` (B, T, L, S, K), with gradients where the convention trains them.

    `model` is called as UniARForConditionalGeneration is, so it may be wrapped (DDP, DeepSpeed, peft). Where both
    branches are trained they are one forward of 2B rows; where one is, the other runs without gradient, or not at all.
    """
    convention = guidance.convention
    if not convention.replays_unconditional:
        return Gaps(_gap(model, bits, prompt), None)
    if unconditional is None:
        raise ValueError(f"guidance {convention.name} needs the unconditional branch.")
    if not convention.trains_unconditional:
        with torch.no_grad():
            uncond = _gap(model, bits, unconditional)
        return Gaps(_gap(model, bits, prompt), uncond)
    both = _gap(model, torch.cat([bits, bits]), _stack(prompt, unconditional))
    return Gaps(*both.chunk(2))


def _gap(model: Callable[..., Any], bits: Tensor, rows: Branch) -> Tensor:
    logits = model(
        input_ids=rows.input_ids,
        attention_mask=rows.attention_mask,
        position_ids=rows.position_ids.transpose(0, 1),
        online_rollout_codes=bits,
        is_vistok_pred=True,
        visual_bits=None if rows.visual_bits is None else torch.cat(rows.visual_bits),
    ).logits.float()
    return logits[..., 1] - logits[..., 0]


def _stack(prompt: Branch, unconditional: Branch) -> Branch:
    """2B rows: the prompts', then the unconditional ones, left-padded to one width. Padded ids are masked, so any id
    serves."""
    width = max(prompt.input_ids.shape[1], unconditional.input_ids.shape[1])

    def pad(rows: Branch) -> list[Tensor]:
        missing = (width - rows.input_ids.shape[1], 0)
        return [F.pad(tensor, missing) for tensor in (rows.input_ids, rows.attention_mask, rows.position_ids)]

    ids, mask, positions = (torch.cat(pair) for pair in zip(pad(prompt), pad(unconditional), strict=True))
    pictures = [bits for rows in (prompt, unconditional) for bits in rows.visual_bits or ()]
    return Branch(ids, mask, positions, pictures or None)  # both have them, or neither
