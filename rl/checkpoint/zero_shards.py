"""Weights out of a DeepSpeed ZeRO checkpoint's shards, without DeepSpeed's engine, a GPU, or unpickling.

DeepSpeed's own `zero_to_fp32` puts the same tensors together, but unpickles the files whole and, for ZeRO-2, needs the
model twice in memory. Here files are loaded with `weights_only=True`, which builds nothing but tensors, plain
containers and the three harmless classes named below, and stay mapped on disk: a tensor is put together at its look-up.

    <checkpoint>/latest                                     the name of the folder that follows
    <checkpoint>/global_stepN/*_model_states.pt             names, shapes, frozen weights; ZeRO-3: one file a rank
    <checkpoint>/global_stepN/*_optim_states.pt             one file a rank: its part of the float32 weights

ZeRO-2 lays the weights of a parameter group end to end and cuts the whole into equal parts, one a rank. ZeRO-3 cuts
each weight into equal parts, padded, and lays a rank's parts end to end.
"""

import math
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from uniar.errors import UserError


class ZeroShards(Mapping[str, Tensor]):
    """The weights of a ZeRO checkpoint under the model's own names: trained ones in float32, frozen ones and buffers as
    they were.

    Raises UserError for a folder that is none, an incomplete one, and a file that holds anything else.
    """

    def __init__(self, checkpoint: Path) -> None:
        folder = _shard_folder(checkpoint)
        models = [_load(file) for file in _files(folder, "*_model_states.pt")]
        optimizers = [_load(file)["optimizer_state_dict"] for file in _files(folder, "*_optim_states.pt")]
        first = optimizers[0]
        self.stage, ranks = int(first["zero_stage"]), first["partition_count"]
        self.ranks = max(ranks) if isinstance(ranks, list) else ranks
        if len(optimizers) != self.ranks:
            raise UserError(
                f"{folder} has {len(optimizers)} *_optim_states.pt files of the {self.ranks} that were written; "
                "all of them are needed."
            )
        self._pieces: dict[str, tuple[list[Tensor], torch.Size]] = {}
        for name in models[0]["buffer_names"]:
            buffer = models[0]["module"][name]
            self._pieces[name] = [buffer.flatten()], buffer.shape
        self._add_frozen(models)
        if self.stage == 3:
            flat = [_Joined(rank["fp32_flat_groups"]) for rank in optimizers]
            self._add_cut_by_weight(models[0]["param_shapes"], flat)
        else:
            parts = [rank["single_partition_of_fp32_groups"] for rank in optimizers]
            self._add_cut_by_group(models[0]["param_shapes"], parts, first.get("param_alignment_paddings"))
        for name, original in models[0]["shared_params"].items():
            if original in self._pieces:
                self._pieces[name] = self._pieces[original]

    def __getitem__(self, name: str) -> Tensor:
        pieces, shape = self._pieces[name]
        return torch.cat(pieces)[: shape.numel()].view(shape)

    def __contains__(self, name: object) -> bool:  # Mapping's own would put the weight together
        return name in self._pieces

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    def _add_frozen(self, models: Sequence[dict[str, Any]]) -> None:
        owners = models if self.stage == 3 else models[:1]
        for name, shape in (models[0]["frozen_param_shapes"] or {}).items():
            self._pieces[name] = [owner["frozen_param_fragments"][name].flatten() for owner in owners], shape

    def _add_cut_by_weight(self, groups: Sequence[Mapping[str, torch.Size]], flat: Sequence["_Joined"]) -> None:
        start = 0
        for shapes in groups:
            for name, shape in shapes.items():
                stop = start + math.ceil(shape.numel() / self.ranks)
                self._pieces[name] = [piece for rank in flat for piece in rank.slice(start, stop)], shape
                start = stop
        self._require_all_used(start, flat[0].length)

    def _add_cut_by_group(
        self,
        groups: Sequence[Mapping[str, torch.Size]],
        parts: Sequence[Sequence[Tensor]],
        paddings: Sequence[Sequence[int]] | None,
    ) -> None:
        for number, shapes in enumerate(groups):
            flat, start = _Joined([rank[number] for rank in parts]), 0
            for place, (name, shape) in enumerate(shapes.items()):
                self._pieces[name] = flat.slice(start, start + shape.numel()), shape
                start += shape.numel() + (paddings[number][place] if paddings else 0)
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


def _shard_folder(checkpoint: Path) -> Path:
    latest = checkpoint / "latest"
    if not latest.is_file():
        raise UserError(f"{checkpoint} has no file 'latest', so it is no DeepSpeed checkpoint.")
    tag = latest.read_text().strip()
    folder = checkpoint / tag
    if not re.fullmatch(r"[\w.-]+", tag) or not folder.is_dir():
        raise UserError(f"{latest} names {tag!r}, which is no folder beside it.")
    return folder


def _files(folder: Path, pattern: str) -> list[Path]:
    """In the order of the ranks."""
    files = sorted(folder.glob(pattern), key=lambda file: [int(number) for number in re.findall(r"\d+", file.name)])
    if not files:
        raise UserError(f"{folder} has no {pattern} file.")
    return files


def _load(file: Path) -> dict[str, Any]:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    try:
        # Rebuilding these runs no code of the file's: an enum, a named tuple, and two objects of plain numbers.
        with torch.serialization.safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{file} cannot be read as a DeepSpeed shard: {str(error).splitlines()[0]}") from error
