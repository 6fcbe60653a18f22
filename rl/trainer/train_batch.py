"""What an update is trained on, typed; and the one place where it is the flat dictionary that TRL shuffles and
splits."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from rl.algorithm.guidance import Gaps, GuidanceSettings
from rl.policy.replay import Branch, replay

_PARTS = {"prompt": Branch, "unconditional": Branch, "drawn": Gaps, "old": Gaps, "reference": Gaps}


@dataclass(frozen=True)
class TrainBatch:
    """B samples, a row each. Gaps are raw: without guidance and temperature."""

    bits: Tensor
    """(B, T, L, S, K) uint8"""
    prompt: Branch
    unconditional: Branch | None
    """what the unconditional branch is fed; None without guidance"""
    drawn: Gaps
    """of the policy that drew"""
    old: Gaps | None = None
    """of the policy before the first update that these samples serve, replayed; None where they serve one"""
    reference: Gaps | None = None
    """of the reference; None without a KL term"""
    advantages: Tensor | None = None
    """(B,) float32; None until the scores are there"""

    def replay(self, model: Any, guidance: GuidanceSettings) -> Gaps:
        """Raw gaps of the bits under `model`, teacher-forced, with gradients as the convention has them."""
        return replay(model, self.bits, self.prompt, self.unconditional, guidance)

    def micro_batches(self, size: int) -> list["TrainBatch"]:
        """The rows in order, `size` at a time."""
        rows = self.to_dict()
        starts = range(0, len(self.bits), size)
        return [self.from_dict({key: value[start : start + size] for key, value in rows.items()}) for start in starts]

    def to_dict(self) -> dict[str, Any]:
        """Tensors, and lists of tensors, indexed by sample: what is None has no entry, `prompt` and the like one for
        each of their fields ("prompt_input_ids")."""
        flat: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            flat |= _named(field.name, value) if field.name in _PARTS else {field.name: value}
        return {name: value for name, value in flat.items() if value is not None}

    @classmethod
    def from_dict(cls, batch: dict[str, Any]) -> "TrainBatch":
        """The inverse of `to_dict`; other entries are passed over."""
        return cls(**{field.name: _from(batch, field.name) for field in fields(cls)})


def joined(parts: list[Gaps]) -> Gaps:
    """Gaps of consecutive rows as one."""
    uncond = None if parts[0].uncond is None else torch.cat([part.uncond for part in parts])
    return Gaps(torch.cat([part.cond for part in parts]), uncond)


def _named(name: str, part: Branch | Gaps | None) -> dict[str, Any]:
    return {f"{name}_{key}": getattr(part, key, None) for key in _keys(_PARTS[name])}


def _from(batch: dict[str, Any], name: str) -> Any:
    if name not in _PARTS:
        return batch.get(name)
    values = {key: batch.get(f"{name}_{key}") for key in _keys(_PARTS[name])}
    return None if all(value is None for value in values.values()) else _PARTS[name](**values)


def _keys(kind: type) -> list[str]:
    return list(kind.__annotations__)
