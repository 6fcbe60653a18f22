"""The policy replayed: drawn bits → the raw logit gaps of each branch, teacher-forced.

Shapes: B samples · P prefix positions · T visual tokens · L levels · S patches per token · K bits per code.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

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
    prefixes: list[str] | None = None
    """B names, equal where prefixes are the same, pictures included; None where that is not known"""

    @classmethod
    def of(cls, prompt: TurnPrompt, owners: Sequence[int], image_token_id: int) -> "Branch":
        """Rows of `prompt` repeated for B samples; `owners` says whose each is."""
        owners, name = [0] * len(owners) if len(prompt) == 1 else owners, uuid4().hex
        pictures = prompt.pictures()
        if pictures is not None:
            pictures = [pictures[owner] for owner in owners]
        ids, mask = append_image_tokens(prompt.input_ids, prompt.attention_mask, prompt.new_tokens, image_token_id)
        rows = torch.tensor(owners, device=ids.device)
        positions = prompt.position_ids.transpose(0, 1)[rows]
        return cls(ids[rows], mask[rows], positions, pictures, [f"{name} {owner}" for owner in owners])

    @classmethod
    def before_text(cls, prompt: TurnPrompt, owners: Sequence[int], tokens: Tensor, written: Tensor) -> "Branch":
        """The same with the `tokens` (B, A) of a text behind each prefix, as far as they were `written` (B, A)."""
        prefix = cls.of(prompt, owners, 0)  # whose own tail is replaced
        width, ends = prompt.input_ids.shape[1], prompt.input_ids.shape[1] + tokens.shape[1]
        ids = torch.cat([prefix.input_ids[:, :width], tokens], 1)
        mask = torch.cat([prefix.attention_mask[:, :width], written.to(prefix.attention_mask.dtype)], 1)
        return cls(ids, mask, prefix.position_ids[..., :ends], prefix.visual_bits, prefix.prefixes)

    @classmethod
    def joined(cls, parts: Sequence["Branch"]) -> "Branch":
        """The rows of all, left-padded to one width. Padded ids are masked, so any id serves."""
        width = max(part.input_ids.shape[1] for part in parts)
        rows = [part.padded(left=width - part.input_ids.shape[1]) for part in parts]
        bits = None
        if shown := [part.visual_bits for part in parts if part.visual_bits is not None]:
            nothing = shown[0][0][:0]
            bits = [one for part in parts for one in part.visual_bits or [nothing] * len(part.input_ids)]
        tensors = ("input_ids", "attention_mask", "position_ids")
        ids, mask, positions = (torch.cat([getattr(row, name) for row in rows]) for name in tensors)
        names = None
        if all(part.prefixes is not None for part in parts):
            names = [name for part in parts for name in part.prefixes or ()]
        return cls(ids, mask, positions, bits, names)

    def shown(self) -> Tensor | None:
        """The bits of all pictures, row by row; None where there are none."""
        return torch.cat(self.visual_bits) if self.visual_bits and any(map(len, self.visual_bits)) else None

    def padded(self, left: int = 0, right: int = 0) -> "Branch":
        """With so many positions more, which nothing sees."""
        ids, mask, positions = (
            F.pad(tensor, (left, right)) for tensor in (self.input_ids, self.attention_mask, self.position_ids)
        )
        return Branch(ids, mask, positions, self.visual_bits, self.prefixes)


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
    both = _gap(model, torch.cat([bits, bits]), Branch.joined([prompt, unconditional]))
    return Gaps(*both.chunk(2))


def _gap(model: Callable[..., Any], bits: Tensor, rows: Branch) -> Tensor:
    logits = model(
        input_ids=rows.input_ids,
        attention_mask=rows.attention_mask,
        position_ids=rows.position_ids.transpose(0, 1),
        online_rollout_codes=bits,
        is_vistok_pred=True,
        visual_bits=rows.shown(),
        prefix_names=rows.prefixes,
    ).logits.float()
    return logits[..., 1] - logits[..., 0]
