"""Which files the weights of a folder are in: those that the library which loads the folder reads, and no others.

A folder may hold more than its weights: shards of an earlier save, a consolidated copy, other precisions. transformers
reads model.safetensors, and only without it the shards of the index; diffusers looks for the index first; peft knows
one file.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from uniar.errors import UserError
from uniar.reading.files import read_object, reason_of

MODEL = "model"
"""what a model of transformers calls its weights"""
DIFFUSERS = "diffusion_pytorch_model"
ADAPTER = "adapter_model"
"""what peft calls them"""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Stored:
    """One tensor of a file, unread."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name, each read or made at its look-up: the base of those that a subclass's `__getitem__` gets."""

    names: Collection[str]

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def has_weights(folder: Path, name: str = MODEL) -> bool:
    return any(file.is_file() for file in _candidates(folder, name))


def weight_files(folder: Path, name: str = MODEL) -> list[Path]:
    """The files of the weights called `name`. Raises UserError where there are none, for an index that is broken or
    names a file outside the folder, and for a shard that is not there."""
    config = folder / "config.json"
    if name == MODEL and config.is_file() and read_object(config).get("transformers_weights"):
        raise UserError(f"{config} names its weights in transformers_weights; call them model.safetensors instead.")
    found = next((file for file in _candidates(folder, name) if file.is_file()), None)
    if found is None:
        known = " nor ".join(file.name for file in _candidates(folder, name))
        raise UserError(f"{folder} has no weights: neither {known} is there.")
    if found.suffix != ".json":
        return [found]
    shards = sorted(set(_weight_map(found).values()))
    for shard in shards:
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise UserError(f"{found} names the file {shard!r}; a shard is a *.safetensors file in the folder itself.")
        if not (folder / shard).is_file():
            raise UserError(f"{found} names the file {shard}, which is not in the folder.")
    return [folder / shard for shard in shards]


def stored_tensors(folder: Path, name: str = MODEL) -> dict[str, Stored]:
    """Name → shape, dtype and file of every tensor of the weights called `name`; nothing but headers is read.

    Raises UserError as `weight_files` does, for a damaged file, and for shards that hold other tensors than the index
    says.
    """
    files = weight_files(folder, name)
    index = folder / f"{name}.safetensors.index.json"
    weight_map = None if files == [folder / f"{name}.safetensors"] else _weight_map(index)
    found: dict[str, Stored] = {}
    for file in files:
        tensors = _header(file)
        if weight_map is not None:
            listed = {tensor for tensor, shard in weight_map.items() if shard == file.name}
            if wrong := sorted(listed ^ set(tensors)):
                fault = "is not in it" if wrong[0] in listed else "is in it as well"
                others = f", and {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
                raise UserError(f"{index} and {file.name} disagree: tensor {wrong[0]} {fault}{others}.")
        found |= tensors
    return found


def _candidates(folder: Path, name: str) -> list[Path]:
    """Where the weights may be, in the order in which the library that loads them looks."""
    single, index = folder / f"{name}.safetensors", folder / f"{name}.safetensors.index.json"
    return {DIFFUSERS: [index, single], ADAPTER: [single]}.get(name, [single, index])


def _weight_map(index: Path) -> Mapping[str, str]:
    content = read_object(index, "index of weights")
    found = content.get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(shard, str) for shard in found.values()):
        raise UserError(f"{index} has no weight_map that gives each tensor the name of its file.")
    if not isinstance(content.get("metadata"), dict):
        raise UserError(f"{index} has no object 'metadata', without which it does not load.")
    return found


def _header(file: Path) -> dict[str, Stored]:
    try:
        with safe_open(file, "pt") as tensors:
            pieces = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            return {name: Stored(file, tuple(p.get_shape()), _DTYPES[p.get_dtype()]) for name, p in pieces.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"the weights in {file} cannot be read: {reason_of(error)}.") from error
    except KeyError as error:
        raise UserError(f"{file} holds tensors of type {error}; known are {', '.join(_DTYPES)}.") from error
