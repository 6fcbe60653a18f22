"""Weights out of a DeepSpeed ZeRO checkpoint's shards, without DeepSpeed's engine, a GPU, or unpickling.

DeepSpeed's own `zero_to_fp32` puts the same tensors together, but unpickles the files whole and, for ZeRO-2, needs the
model twice in memory. Here files stay mapped on disk (rl/distributed/engine.py reads them): a tensor is put together at
its look-up.

ZeRO-2 lays the weights of a parameter group end to end and cuts the whole into equal parts, one per rank. ZeRO-3 cuts
each weight into equal parts, padded, and lays a rank's parts end to end.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rl.distributed.engine import Shards, read_shards
from uniar.errors import UserError
from uniar.weight_files import LazyTensors


class ZeroShards(LazyTensors):
    """The weights of a ZeRO checkpoint under the model's own names: trained ones in float32, frozen ones and buffers as
    they were.

    Raises UserError for a folder that is none, an incomplete one, and a file that holds anything else.
    """

    def __init__(self, checkpoint: Path) -> None:
        shards = read_shards(checkpoint)
        self.stage, self.ranks = shards.stage, shards.ranks
        self._pieces: dict[str, tuple[list[Tensor], torch.Size]] = {
            **{name: ([buffer.flatten()], buffer.shape) for name, buffer in shards.buffers.items()},
            **shards.frozen,
        }
        self.names = self._pieces
        if self.stage == 3:
            self._add_cut_by_weight(shards)
        else:
            self._add_cut_by_group(shards)
        for name, original in shards.shared.items():
            if original in self._pieces:
                self._pieces[name] = self._pieces[original]

    def __getitem__(self, name: str) -> Tensor:
        pieces, shape = self._pieces[name]
        return torch.cat(pieces)[: shape.numel()].view(shape)

    def _add_cut_by_weight(self, shards: Shards) -> None:
        flat, start = [_Joined(parts) for parts in shards.parts], 0
        for shapes in shards.groups:
            for name, shape in shapes.items():
                stop = start + math.ceil(shape.numel() / self.ranks)
                self._pieces[name] = [piece for rank in flat for piece in rank.slice(start, stop)], shape
                start = stop
        self._require_all_used(start, flat[0].length)

    def _add_cut_by_group(self, shards: Shards) -> None:
        for number, shapes in enumerate(shards.groups):
            flat, start = _Joined([parts[number] for parts in shards.parts]), 0
            for place, (name, shape) in enumerate(shapes.items()):
                self._pieces[name] = flat.slice(start, start + shape.numel()), shape
                start += shape.numel() + (shards.paddings[number][place] if shards.paddings else 0)
            self._require_all_used(start, flat.length, aligned_to=2 * self.ranks)

    def _require_all_used(self, used: int, held: int, aligned_to: int = 1) -> None:
        """ZeRO-2 pads the end, so that every rank's part is aligned."""
        if math.ceil(used / aligned_to) != math.ceil(held / aligned_to):
            raise UserError(
                f"the ZeRO-{self.stage} shards hold {held} numbers for weights of {used}; they are damaged."
            )


class _Joined:
    """Flat tensors end to end, sliced without being copied."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)
        self.length = sum(len(tensor) for tensor in self.tensors)

    def slice(self, start: int, stop: int) -> list[Tensor]:
        found, offset = [], 0
        for tensor in self.tensors:
            low, high = max(start - offset, 0), min(stop - offset, len(tensor))
            if low < high:
                found.append(tensor[low:high])
            offset += len(tensor)
        return found
