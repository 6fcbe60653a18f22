"""Rows that have the same prefix, computed once for all of them: what GRPO's groups are.

A packed row is a prefix and behind it the tails of up to G rows: P + G·T positions in place of G·(P + T). Tails do not
see each other, so each position has what it has in a row of its own. Prefix Grouper (arXiv 2506.05433) does so for
text.

Shapes: B rows · P prefix positions · T tail positions · R packed rows · G tails of a packed row · H hidden.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from uniar.attention import without_empty_rows


@dataclass(frozen=True)
class SharedMask:
    """What the positions of packed rows see, in the form that the attention wants: bool, or what is added to scores."""

    prefix: Tensor
    """(R, 1, P, P) of prefixes"""
    tail: Tensor
    """(R·G, 1, T, P + T) of tails, which see their prefix and themselves"""


@dataclass(frozen=True)
class SharedPrefixes:
    """Which of B rows make up R packed rows."""

    width: int
    """P"""
    slots: Tensor
    """(R, G) the row whose tail is there; where there is none, any row, whose tail is computed in vain"""
    places: Tensor
    """(B,) where each row's tail is among the R·G"""

    @classmethod
    def of(
        cls, names: Sequence[Hashable], width: int, tail: int, device: torch.device | str
    ) -> "SharedPrefixes | None":
        """names: B, equal where prefixes are. Chooses the G that leaves the fewest positions. None where rows of their
        own are as few."""
        rows: dict[Hashable, list[int]] = {}
        for row, name in enumerate(names):
            rows.setdefault(name, []).append(row)
        size = fewest_positions([len(alike) for alike in rows.values()], width, tail)
        if size == 1:
            return None
        packed = [alike[start : start + size] for alike in rows.values() for start in range(0, len(alike), size)]
        places = [0] * len(names)
        for number, tails in enumerate(packed):
            for place, row in enumerate(tails):
                places[row] = number * size + place
        slots = [row for tails in packed for row in (*tails, *tails[:1] * (size - len(tails)))]
        return cls(width, _on(device, slots).view(-1, size), _on(device, places))

    def packed(self, rows: Tensor) -> Tensor:
        """(B, P + T, …) → (R, P + G·T, …)"""
        prefix, tail = rows[:, : self.width], rows[:, self.width :]
        tails = tail[self.slots.flatten()].reshape(len(self.slots), -1, *rows.shape[2:])
        return torch.cat([prefix[self.slots[:, 0]], tails], 1)

    def predicting(self, states: Tensor) -> Tensor:
        """(R, P + G·T, H) states → (B, T, H), of each row those that predict its tail: the state before each token."""
        size = self.slots.shape[1]
        tails = states[:, self.width :].unflatten(1, (size, -1))
        last = states[:, self.width - 1, None, None].expand(-1, size, 1, -1)
        return torch.cat([last, tails[:, :, :-1]], 2).flatten(0, 1)[self.places]

    def mask(self, attention_mask: Tensor, added: torch.dtype | None) -> SharedMask:
        """attention_mask: (B, P + T), 0 on the padding. added: of the mask that is added to scores; None for bool."""
        rows, width = attention_mask.bool(), self.width
        at = torch.arange(rows.shape[1], device=rows.device)
        before = at[:, None] >= at
        prefix = before[:width, :width] & rows[self.slots[:, 0], None, None, :width]
        tail = before[width:] & rows[self.slots.flatten(), None, None]
        return SharedMask(*(_in_form(without_empty_rows(visible), added) for visible in (prefix, tail)))


def attended(
    attend: Callable[..., tuple[Tensor, Any]], query: Tensor, key: Tensor, value: Tensor, mask: SharedMask
) -> Tensor:
    """Attention of packed rows: `query`, `key` and `value` (R, heads, P + G·T, D), the last two perhaps of fewer heads
    → (R, P + G·T, heads, D). attend: an attention of transformers."""
    packed, width = len(query), mask.prefix.shape[-1]
    size = len(mask.tail) // packed
    prefix, _ = attend(query[:, :, :width], key[:, :, :width], value[:, :, :width], mask.prefix)

    def tails(states: Tensor, behind: bool = True) -> Tensor:
        own = states[:, :, width:].unflatten(2, (size, -1)).transpose(1, 2)
        if behind:
            own = torch.cat([states[:, None, :, :width].expand(-1, size, -1, -1, -1), own], 3)
        return own.flatten(0, 1)

    tail, _ = attend(tails(query, behind=False), tails(key), tails(value), mask.tail)
    return torch.cat([prefix, tail.unflatten(0, (packed, size)).flatten(1, 2)], 1)


def _on(device: torch.device | str, numbers: list[int]) -> Tensor:
    """Without a wait for the GPU, on which all may be queued that was asked for so far."""
    if numbers == list(range(len(numbers))):
        return torch.arange(len(numbers), device=device)
    made = torch.tensor(numbers)
    return made.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else made.to(device)


def fewest_positions(alike: Sequence[int], width: int, tail: int) -> int:
    """How many tails a packed row best has, where so many rows have the same prefix of `width` positions, and a tail of
    `tail`."""

    def positions(size: int) -> int:
        return sum(-(-count // size) for count in alike) * (width + size * tail)

    return min(range(1, max(alike) + 1), key=positions)


def _in_form(visible: Tensor, added: torch.dtype | None) -> Tensor:
    if added is None:
        return visible
    return torch.zeros(visible.shape, dtype=added, device=visible.device).masked_fill(~visible, torch.finfo(added).min)
