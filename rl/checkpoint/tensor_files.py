"""Weights in safetensors files: read one tensor at a time, and written in shards.

Weights are a `Mapping[str, Tensor]` here; those that lie on disk are read at the look-up, so that a model larger than
the memory can be copied, merged and cast.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rl.checkpoint.layout import EMA, MODEL_CONFIG
from rl.distributed.weight_slices import SlicedFiles
from uniar.errors import UserError
from uniar.weight_files import MODEL, LazyTensors, Stored, stored_tensors

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class TensorFiles(LazyTensors):
    """The tensors of a folder's weights, each read from its file at the look-up. Errors are `stored_tensors`'."""

    def __init__(self, folder: Path, name: str = MODEL) -> None:
        self.names = self.stored = stored_tensors(folder, name)

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self.stored[name].file, "pt") as tensors:
            return tensors.get_tensor(name)


def averaged_weights(checkpoint: Path) -> Mapping[str, Tensor]:
    """The averages in a checkpoint (model.ema) under the trained model's names, in float32, each put together at its
    look-up. Raises UserError for a checkpoint without them, or with some of their files missing."""
    if not (checkpoint / EMA).is_dir():
        raise UserError(f"{checkpoint} has no averaged weights; its run had no model.ema.")
    return SlicedFiles(checkpoint / EMA)


def write_like(source: Path, weights: Mapping[str, Tensor], target: Path, max_shard_size: int) -> None:
    """Writes `weights` into `target` under the names, shapes and dtypes of the checkpoint folder `source`.

    One shard, at most `max_shard_size` bytes unless a single tensor is larger, is in memory at a time. Several shards
    get transformers' index file. Raises UserError for a tensor that only one of the two has, or of another shape.
    """
    layout = stored_tensors(source)
    _require_same_names(source, layout, weights)
    shards = _split(layout, max_shard_size)
    names = {}
    for number, shard in enumerate(shards, start=1):
        many = f"-{number:05d}-of-{len(shards):05d}"
        file = f"{MODEL}{many if len(shards) > 1 else ''}.safetensors"
        save_tensors({name: _like(layout[name], name, weights[name]) for name in shard}, target / file)
        names |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(tensor.bytes for tensor in layout.values())}, "weight_map": names}
        (target / f"{MODEL}.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """One safetensors file, readable by whom the umask lets: the library writes it for its owner alone."""
    save_file(tensors, file, {"format": "pt"})
    umask = os.umask(0)
    os.umask(umask)
    file.chmod(0o666 & ~umask)


def main_dtype(folder: Path) -> torch.dtype:
    """The floating-point type that most of a checkpoint's weights are stored in."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in stored_tensors(folder).values():
        if tensor.dtype.is_floating_point:
            sizes[tensor.dtype] += tensor.bytes
    return sizes.most_common(1)[0][0] if sizes else torch.float32


def parse_size(text: str) -> int:
    """Bytes of a string such as 5GB, 200 MB or 1000000, in powers of ten. Raises UserError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip(), flags=re.IGNORECASE)
    if match is None or not float(match[1]):
        raise UserError(f"the size {text!r} cannot be read; write a number and a unit, such as 5GB or 500MB.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _require_same_names(source: Path, layout: Mapping[str, Stored], weights: Mapping[str, Tensor]) -> None:
    tied = set()
    config = source / MODEL_CONFIG
    if config.is_file() and json.loads(config.read_text()).get("tie_word_embeddings"):
        tied = {"lm_head.weight"}  # the input embeddings under another name, which files leave out
    for what, names in (
        (f"is in {source} and not in the trained weights", set(layout) - set(weights)),
        (f"is in the trained weights and not in {source}", set(weights) - set(layout) - tied),
    ):
        if names:
            others = f", and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"tensor {min(names)} {what}{others}; name the checkpoint that training started from.")


def _split(layout: Mapping[str, Stored], max_shard_size: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    room = max_shard_size
    for name, tensor in layout.items():
        if shards[-1] and tensor.bytes > room:
            shards.append([])
            room = max_shard_size
        shards[-1].append(name)
        room -= tensor.bytes
    return shards


def _like(stored: Stored, name: str, tensor: Tensor) -> Tensor:
    if tuple(tensor.shape) != stored.shape:
        raise UserError(f"tensor {name} has shape {tuple(tensor.shape)}; in {stored.file} it is {stored.shape}.")
    return tensor.detach().to("cpu", stored.dtype).contiguous()
