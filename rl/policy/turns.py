"""Turns as rows of tensors: what was drawn or written, what came before it, and how probable the policy found it.

One row is a turn of one sample; rows of one kind are joined to be replayed together.

Shapes: R rows · P prefix positions · T visual tokens · L levels · S patches per token · K bits per code · A text tokens
· H hidden.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rl.algorithm.guidance import Gaps, GuidanceSettings
from rl.policy.replay import Branch, replay


class Kind(NamedTuple):
    """What can be replayed in one forward pass."""

    name: Literal["text", "picture"]
    tokens: int
    """of a picture; 0 for texts, whose lengths may differ"""
    expert: str = ""
    """that is asked about it, in distillation"""


@dataclass(frozen=True)
class Pictures:
    """R drawn pictures of one size."""

    bits: Tensor
    """(R, T, L, S, K) uint8"""
    prompt: Branch
    unconditional: Branch | None
    """what the unconditional branch is fed; None without guidance"""
    drawn: Gaps
    """raw gaps of the policy that drew: without guidance and temperature"""
    old: Gaps | None = None
    """of the policy before the first update that these turns serve, replayed; None where they serve one"""
    reference: Gaps | None = None
    """of the reference, or the expert; None without a KL term"""
    expert: str = ""
    """by name; nobody without distillation"""

    @property
    def kind(self) -> Kind:
        return Kind("picture", self.bits.shape[1], self.expert)

    @property
    def width(self) -> int:
        """Bits of a row."""
        return self.bits[0].numel()

    @property
    def elements(self) -> int:
        """Bits of all rows."""
        return self.bits.numel()

    def __len__(self) -> int:
        return len(self.bits)

    def row(self, number: int) -> Self:
        return replace(self, **{field.name: _row(getattr(self, field.name), number) for field in fields(self)})

    @classmethod
    def joined(cls, rows: Sequence[Self]) -> Self:
        """All have one kind, and the same parts."""
        return cls(**{field.name: _joined([getattr(row, field.name) for row in rows]) for field in fields(cls)})

    def replay(self, model: Any, guidance: GuidanceSettings) -> Gaps:
        """Raw gaps of the bits under `model`, teacher-forced, with gradients as the convention has them."""
        return replay(model, self.bits, self.prompt, self.unconditional, guidance)

    @classmethod
    def stand_in(cls, config: Any, device: torch.device, guided: bool, expert: str = "") -> Self:
        """One visual token that nobody drew, for a process that has no picture to replay where others have."""
        bits = torch.zeros(1, 1, *config.vision_config.code_shape, dtype=torch.uint8, device=device)
        branch = _any_branch([0, config.image_token_id], device)
        gaps = torch.zeros(bits.shape, device=device)
        return cls(bits, branch, branch if guided else None, Gaps(gaps, gaps if guided else None), expert=expert)


@dataclass(frozen=True)
class Texts:
    """R written texts. Shorter ones are padded on the right."""

    tokens: Tensor
    """(R, A) int64, the token that ends a turn included where it came"""
    mask: Tensor
    """(R, A) bool: which of them were written"""
    prompt: Branch
    """prefix and written tokens, P + A positions"""
    drawn: Tensor
    """(R, A) float32: log π of each token under the policy that wrote, at its temperature"""
    old: Tensor | None = None
    """the same of the policy before the first update that these turns serve; None where they serve one"""
    reference: Tensor | None = None
    """the same of the reference; None without a KL term"""
    reference_hidden: Tensor | None = None
    """(R, A, H) the states from which the reference predicts each token; None but for the exact KL divergence"""
    expert: str = ""
    """by name, where `reference` is that of an expert; nobody without distillation"""

    @property
    def kind(self) -> Kind:
        return Kind("text", 0, self.expert)

    @property
    def width(self) -> int:
        """Tokens of a row, padding included."""
        return self.tokens.shape[1]

    @property
    def elements(self) -> int:
        """Tokens of all rows, without padding. Waits for the device."""
        return int(self.mask.sum())

    def __len__(self) -> int:
        return len(self.tokens)

    def row(self, number: int) -> Self:
        """Without padding: how long others are that it was written beside is nothing of its own. Waits for the
        device."""
        row = replace(self, **{field.name: _row(getattr(self, field.name), number) for field in fields(self)})
        return row._padded(row.elements - row.width)

    @classmethod
    def joined(cls, rows: Sequence[Self]) -> Self:
        longest = max(row.tokens.shape[1] for row in rows)
        padded = [row._padded(longest - row.tokens.shape[1]) for row in rows]
        return cls(**{field.name: _joined([getattr(row, field.name) for row in padded]) for field in fields(cls)})

    def _padded(self, missing: int) -> Self:
        """By so many tokens, or less by so many where it is negative."""
        if not missing:
            return self
        changed: dict[str, Any] = {"prompt": self.prompt.padded(right=missing)}
        for name in ("tokens", "mask", "drawn", "old", "reference"):
            if (tensor := getattr(self, name)) is not None:
                changed[name] = F.pad(tensor, (0, missing))
        if self.reference_hidden is not None:
            changed["reference_hidden"] = F.pad(self.reference_hidden, (0, 0, 0, missing))
        return replace(self, **changed)

    def replay(
        self,
        model: Any,
        temperature: float,
        *,
        positions: int = 0,
        exact_kl: bool = False,
        head: nn.Module | None = None,
    ) -> Any:
        """What the model says of the written tokens, teacher-forced (uniar/teacher_forcing.py).

        positions: the most that a process has in this pass. exact_kl: also the divergence from the reference, whose
        output layer is `head` (None: the model's own).
        """
        branch = self.prompt
        compared = {"reference_hidden": self.reference_hidden, "reference_head": head} if exact_kl else {}
        return model(
            input_ids=branch.input_ids,
            attention_mask=branch.attention_mask,
            position_ids=branch.position_ids.transpose(0, 1),
            visual_bits=branch.shown(),
            written_tokens=self.tokens,
            written_mask=self.mask,
            text_temperature=temperature,
            written_positions=positions,
            prefix_names=branch.prefixes,
            **compared,
        )

    @classmethod
    def stand_in(cls, device: torch.device, hidden: int | None, expert: str = "") -> Self:
        """One token that nobody wrote, for a process that has no text to replay where others have. hidden: size of the
        states of a reference that is measured from; None without one."""
        tokens = torch.zeros(1, 1, dtype=torch.long, device=device)
        nothing = torch.zeros(1, 1, device=device)
        row = cls(tokens, tokens == 0, _any_branch([0, 0], device), nothing, expert=expert)
        if hidden is None:
            return row
        # Its loss has the terms of any other, so that the same modules run backwards too.
        return replace(row, reference=nothing, reference_hidden=torch.zeros(1, 1, hidden, device=device))


Turn: TypeAlias = Pictures | Texts


def joined(turns: Sequence[Turn]) -> Turn:
    """Turns of one kind as rows of one."""
    return turns[0] if len(turns) == 1 else type(turns[0]).joined(turns)  # type: ignore[arg-type]


def named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors in turns, in their parts, and in lists and tuples of such, under names as `0.prompt.input_ids`."""
    if isinstance(value, Tensor):
        yield name, value
        return
    children: dict[str, Any] = {}
    if isinstance(value, Pictures | Texts | Branch):
        children = {field.name: getattr(value, field.name) for field in fields(value)}
    elif isinstance(value, Gaps):
        children = value._asdict()
    elif isinstance(value, list | tuple):
        children = {str(number): item for number, item in enumerate(value)}
    for key, child in children.items():
        yield from named_tensors(child, f"{name}.{key}" if name else key)


def turn_on_device(value: Any, device: torch.device | str) -> Any:
    """A turn, or a part of one, with its tensors there."""
    if isinstance(value, Tensor):
        return value.to(device, copy=True)  # a row alone: what it is a view of would be sent with it
    if isinstance(value, list):
        return [turn_on_device(item, device) for item in value]
    if isinstance(value, Gaps):
        return Gaps(*(turn_on_device(part, device) for part in value))
    if isinstance(value, Pictures | Texts | Branch):
        return replace(
            value, **{field.name: turn_on_device(getattr(value, field.name), device) for field in fields(value)}
        )
    return value  # None, and names


def _any_branch(ids: list[int], device: torch.device) -> Branch:
    row = torch.tensor([ids], device=device)
    positions = torch.arange(len(ids), device=device).expand(1, 3, -1)
    return Branch(row, torch.ones_like(row), positions)


def _row(value: Any, number: int) -> Any:
    if isinstance(value, Tensor):
        return value[number : number + 1]
    if isinstance(value, list):
        return value[number : number + 1]
    if isinstance(value, Branch):
        return Branch(*(_row(getattr(value, field.name), number) for field in fields(value)))
    if isinstance(value, Gaps):
        return Gaps(*(_row(part, number) for part in value))
    return value  # None, and names


def _joined(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(values)
    if isinstance(first, Branch):
        return Branch.joined(values)
    if isinstance(first, Gaps):
        return Gaps(*(_joined(list(parts)) for parts in zip(*values, strict=True)))
    return first  # None, as of all, or the name that all have
