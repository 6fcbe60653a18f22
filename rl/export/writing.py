"""Training checkpoint → a self-contained folder that the model card's snippets load (spec section 1).

Names, shapes, dtypes and configs are those of the checkpoint that training started from; only values differ. Weights
are read, merged, cast and written a tensor at a time: a shard is all that has to fit in memory, and no GPU is needed.
"""

import json
import shutil
from collections import ChainMap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from peft import PeftModel
from torch import Tensor
from torch.nn import Module

from rl.checkpoint.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    merge_checkpoint,
    merge_state,
    read_config,
    trained_adapter,
)
from rl.checkpoint.disk_errors import write_failure
from rl.checkpoint.tensor_files import TensorFiles, save_tensors, write_like
from rl.checkpoint.zero_shards import ZeroShards
from rl.trainer.extensions.ema import averaged_weights
from uniar.checkpoint import copy_untrained_parts
from uniar.errors import UserError
from uniar.inspection import inspect_checkpoint
from uniar.weight_files import has_weights

MAX_SHARD_SIZE = 5 * 10**9

CARD = "README.md"

_CONFIGS = ("config.json", "generation_config.json")


def export_model(
    model: Module,
    source: Path,
    target: Path,
    state: Mapping[str, Tensor] | None = None,
    *,
    max_shard_size: int = MAX_SHARD_SIZE,
    card: str | None = None,
) -> None:
    """Writes `model` to `target`: adapters merged, dtypes as in `source`, the tokenizer and decoder of `source` copied.

    `state` are its weights where the model itself holds only a shard of them. `card` is the README.md. The folder
    appears complete or not at all. Raises UserError when `target` exists already with other contents than an export.
    """
    state = model.state_dict() if state is None else state
    if isinstance(model, PeftModel):
        state = merge_state(state, model.peft_config[model.active_adapter].to_dict())
    _write_checkpoint(state, source, target, max_shard_size, card)


def export_checkpoint(
    checkpoint: Path,
    source: Path,
    target: Path,
    *,
    average: bool = False,
    max_shard_size: int = MAX_SHARD_SIZE,
    card: str | None = None,
) -> None:
    """A `checkpoint-N` folder of a run → `target`: whole, ZeRO-2 or ZeRO-3 shards alone, or a LoRA adapter, which is
    merged into `source`; with `average` the averaged weights. Raises UserError as `export_model` does, and for a folder
    that is no checkpoint or has no average."""
    inspect_checkpoint(source, decoder=True)
    _write_checkpoint(trained_weights(checkpoint, source, average=average), source, target, max_shard_size, card)


def export_adapter(
    checkpoint: Path, base: str, target: Path, *, average: bool = False, card: str | None = None
) -> None:
    """The adapter of a LoRA checkpoint alone, in peft's format, to be put on the model `base` (hub id or folder).

    Raises UserError for a checkpoint without one, and for `target` as `export_model` does.
    """
    if not (checkpoint / ADAPTER_CONFIG).is_file():
        raise UserError(f"{checkpoint} has no {ADAPTER_CONFIG}: it holds no adapter, but a whole model.")
    config = read_config(checkpoint) | {"base_model_name_or_path": base, "inference_mode": True}
    with appearing(target, ADAPTER_CONFIG) as folder:
        save_tensors(trained_adapter(checkpoint, average=average), folder / ADAPTER_WEIGHTS)
        (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        if card is not None:
            (folder / CARD).write_text(card)


def trained_weights(checkpoint: Path, source: Path, *, average: bool = False) -> Mapping[str, Tensor]:
    """All weights of a checkpoint under the model's names, read at the look-up; adapters merged into `source`. With
    `average`, those that were trained are the averages."""
    if (checkpoint / ADAPTER_CONFIG).is_file():
        return merge_checkpoint(checkpoint, source, average=average)
    if average:
        return ChainMap(averaged_weights(checkpoint), trained_weights(checkpoint, source))
    if not (checkpoint / "config.json").is_file():
        raise UserError(f"{checkpoint} has neither config.json (full checkpoint) nor {ADAPTER_CONFIG} (LoRA).")
    if has_weights(checkpoint):
        return TensorFiles(checkpoint)
    if (checkpoint / "latest").is_file():
        return ZeroShards(checkpoint)
    raise UserError(f"{checkpoint} has neither model.safetensors, nor its index, nor DeepSpeed's shards ('latest').")


def _write_checkpoint(
    weights: Mapping[str, Tensor], source: Path, target: Path, max_shard_size: int, card: str | None
) -> None:
    with appearing(target, "config.json") as folder:
        write_like(source, weights, folder, max_shard_size)
        for name in _CONFIGS:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        copy_untrained_parts(source, folder)
        if card is not None:
            (folder / CARD).write_text(card)


@contextmanager
def appearing(target: Path, sign: str) -> Iterator[Path]:
    """A folder to write to that becomes `target` when all is there. Only a folder with the file `sign` is replaced, and
    only if it is no training checkpoint. Raises UserError where it cannot be written."""
    require_replaceable(target, sign)
    target = target.resolve()  # a link to another disk stays one
    partial, replaced = (target.with_name(f"{target.name}.{state}") for state in ("partial", "replaced"))
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        if target.exists():  # renamed first: killed while it is deleted, it would be half of a checkpoint
            target.rename(replaced)
        partial.rename(target)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if (said := write_failure(error)) is not None:
            raise UserError(f"{target} cannot be written: {said}.") from error
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def require_replaceable(target: Path, sign: str = "config.json") -> None:
    """Raises UserError for a folder that an export must not replace."""
    if target.exists() and not (target / sign).is_file():
        raise UserError(f"{target} exists and is no checkpoint folder; choose another output folder.")
    if (target / "trainer_state.json").exists():
        raise UserError(f"{target} is a training checkpoint, which an export must not replace; choose another folder.")
