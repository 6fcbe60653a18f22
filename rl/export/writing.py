"""Training checkpoint → a self-contained folder that the model card's snippets load (docs/checkpoint-format.md, 1).

Names, shapes, dtypes and configs are those of the checkpoint that training started from; only values differ. Weights
are read, merged, cast and written a tensor at a time: a shard is all that has to fit in memory, and no GPU is needed.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from peft import PeftModel
from torch import Tensor
from torch.nn import Module

from rl.checkpoint.adapters import (
    merge_state,
    read_config,
    trained_adapter,
)
from rl.checkpoint.exported_folder import appearing
from rl.checkpoint.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD, MODEL_CONFIG
from rl.checkpoint.tensor_files import save_tensors, write_like
from rl.checkpoint.weights import trained_weights
from uniar.checkpoint import copy_untrained_parts
from uniar.errors import UserError
from uniar.inspection import inspect_checkpoint

MAX_SHARD_SIZE = 5 * 10**9

_CONFIGS = (MODEL_CONFIG, "generation_config.json")


def export_model(
    model: Module,
    source: Path,
    target: Path,
    state: Mapping[str, Tensor] | None = None,
    *,
    max_shard_size: int = MAX_SHARD_SIZE,
    card: str | None = None,
    note: Callable[[Path], None] | None = None,
) -> None:
    """Writes `model` to `target`: adapters merged, dtypes as in `source`, the tokenizer and decoder of `source` copied.

    `state` are its weights where the model itself holds only a shard of them. `card` is the README.md. The folder
    appears complete or not at all; `note` is called with it when all is written, before it has its name. Raises
    UserError when `target` exists already with other contents than an export.
    """
    state = model.state_dict() if state is None else state
    if isinstance(model, PeftModel):
        state = merge_state(state, model.peft_config[model.active_adapter].to_dict())
    _write_checkpoint(state, source, target, max_shard_size, card, note)


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
    that is not a checkpoint or has no average."""
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


def _write_checkpoint(
    weights: Mapping[str, Tensor],
    source: Path,
    target: Path,
    max_shard_size: int,
    card: str | None,
    note: Callable[[Path], None] | None = None,
) -> None:
    with appearing(target, MODEL_CONFIG) as folder:
        write_like(source, weights, folder, max_shard_size)
        for name in _CONFIGS:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        copy_untrained_parts(source, folder, target)
        if card is not None:
            (folder / CARD).write_text(card)
        if note is not None:
            note(folder)
