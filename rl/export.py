"""Training checkpoint → a self-contained folder that the model card's snippets load (spec section 1)."""

import json
import shutil
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor
from torch.nn import Module

from uniar.checkpoint import copy_untrained_parts, require_parts
from uniar.errors import UserError
from uniar.modeling_uniar import UniARForConditionalGeneration


def export_model(model: Module, source: Path, target: Path, state: dict[str, Tensor] | None = None) -> None:
    """Writes `model` to `target`: adapters merged, dtypes as in `source`, the tokenizer and decoder of `source` copied.

    `state` are its weights where the model itself holds only a shard of them. The folder appears complete or not at
    all. Raises UserError when `target` exists already with other contents than an export.
    """
    if isinstance(model, PeftModel):
        model, state = _merged(model, state)
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weights = _cast_like(state if state is not None else model.state_dict(), source)
    model.save_pretrained(partial, state_dict=weights)
    _set_config_dtype(partial / "config.json", source / "config.json")
    copy_untrained_parts(source, partial)
    if target.exists():
        if not (target / "config.json").is_file():
            raise UserError(f"{target} exists and is no checkpoint folder; choose another output folder.")
        shutil.rmtree(target)
    partial.rename(target)


def export_checkpoint(checkpoint: Path, source: Path, target: Path) -> None:
    """A `checkpoint-N` folder of a run → `target`. Full checkpoints are loaded, LoRA ones merged into `source`."""
    require_parts(source, decoder=True)
    if (checkpoint / "adapter_config.json").is_file():
        base = UniARForConditionalGeneration.from_pretrained(source)
        model: Module = PeftModel.from_pretrained(base, checkpoint)
    elif (checkpoint / "config.json").is_file():
        model = UniARForConditionalGeneration.from_pretrained(checkpoint)
    else:
        raise UserError(f"{checkpoint} has neither config.json (full checkpoint) nor adapter_config.json (LoRA).")
    export_model(model, source, target)


def _merged(model: PeftModel, state: dict[str, Tensor] | None) -> tuple[Module, dict[str, Tensor]]:
    """The base model's weights with the adapters added, leaving `model` as it is."""
    if state is not None:
        raise UserError("sharded LoRA weights cannot be merged in place; export the saved checkpoint instead.")
    model.merge_adapter()
    try:
        merged = {
            name.replace(".base_layer.", "."): tensor.clone()
            for name, tensor in model.get_base_model().state_dict().items()
            if "lora_" not in name
        }
    finally:
        model.unmerge_adapter()
    return model.get_base_model(), merged


def _cast_like(state: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    """Each tensor in the dtype that the source checkpoint stores it in."""
    stored: dict[str, torch.dtype] = {}
    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            stored |= {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    dtypes = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "I64": torch.int64}
    return {name: tensor.to(dtypes[stored[name]]) if name in stored else tensor for name, tensor in state.items()}


def _set_config_dtype(written: Path, source: Path) -> None:
    """The config must name the dtype of the weights beside it, not the one that was trained in."""
    config, original = json.loads(written.read_text()), json.loads(source.read_text())
    config["dtype"] = original.get("dtype") or original.get("torch_dtype")
    written.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
