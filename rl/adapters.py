"""LoRA adapters (arXiv 2106.09685) added to the weights they belong to: W + (alpha / r)·B·A."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl.ema import averaged_weights
from rl.tensor_files import TensorFiles
from rl.zero_shards import ZeroShards
from uniar.errors import UserError
from uniar.weight_files import ADAPTER, has_weights

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = f"{ADAPTER}.safetensors"

_PREFIX = "base_model.model."
# Further arts of LoRA that peft knows and that add something else than (alpha / r)·B·A.
_OTHER_ARTS = ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "layer_replication", "modules_to_save")


class MergedAdapter(Mapping[str, Tensor]):
    """`base` with an adapter added, each weight at its look-up: in float32, rounded once to its own type.

    adapter: peft's names → tensors. scale: alpha / r.
    Raises UserError for tensors that are no pair of LoRA factors of a weight in `base`.
    """

    def __init__(self, base: Mapping[str, Tensor], adapter: Mapping[str, Tensor], scale: float) -> None:
        self.base, self.adapter, self.scale = base, adapter, scale
        self._factors: dict[str, dict[str, str]] = {}
        for name in adapter:
            module, _, factor = name.removeprefix(_PREFIX).replace(".default.", ".").rpartition(".lora_")
            if factor not in ("A.weight", "B.weight") or f"{module}.weight" not in base:
                raise UserError(f"adapter tensor {name} is no LoRA factor of a weight in the model it is added to.")
            self._factors.setdefault(f"{module}.weight", {})[factor[0]] = name
        for name, factors in self._factors.items():
            if len(factors) < 2:
                raise UserError(f"the adapter has only the factor {factors.popitem()[1]} of {name}.")

    def __getitem__(self, name: str) -> Tensor:
        weight = self.base[name]
        if name not in self._factors:
            return weight
        a, b = (self.adapter[self._factors[name][factor]].float() for factor in "AB")
        added = (b @ a).to(weight.device) * self.scale
        if added.shape != weight.shape:
            raise UserError(
                f"the adapter of {name} has shape {tuple(added.shape)}; the weight has {tuple(weight.shape)}."
            )
        return (weight.float() + added).to(weight.dtype)

    def __contains__(self, name: object) -> bool:  # Mapping's own would make the weight
        return name in self.base

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)


def merge_checkpoint(checkpoint: Path, source: Path, *, average: bool = False) -> MergedAdapter:
    """The model in `source` with the adapter of a checkpoint folder added, or with the average of that adapter."""
    scale = lora_scale(read_config(checkpoint), str(checkpoint))
    return MergedAdapter(TensorFiles(source), trained_adapter(checkpoint, average=average), scale)


def merge_state(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> MergedAdapter:
    """A peft model's own state dict, whole, → its base weights with the adapter added. The state is left as it is."""
    base, adapter = {}, {}
    for name, tensor in state.items():
        if ".lora_" in name:
            adapter[name] = tensor
        else:
            base[name.removeprefix(_PREFIX).replace(".base_layer.", ".")] = tensor
    return MergedAdapter(base, adapter, lora_scale(config, "the trained model"))


def read_config(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's adapter_config.json. Raises UserError when it is not one."""
    file = checkpoint / ADAPTER_CONFIG
    try:
        config = json.loads(file.read_text())
        return {**config, "peft_type": config["peft_type"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is no configuration of a peft adapter ({type(error).__name__}: {error}).") from error


def lora_scale(config: Mapping[str, Any], where: str) -> float:
    """alpha / r of a peft configuration. Raises UserError for adapters that are more than that."""
    other = [name for name in _OTHER_ARTS if config.get(name)]
    if config.get("peft_type") != "LORA" or other:
        found = f"sets {other[0]}" if other else f"is of type {config.get('peft_type')}"
        raise UserError(f"the adapter of {where} {found}; only plain LoRA is merged here, merge it with peft itself.")
    rank = math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
    return config["lora_alpha"] / rank


def trained_adapter(checkpoint: Path, *, average: bool = False) -> dict[str, Tensor]:
    """A checkpoint's adapter as peft stores it: of its file, or, where it has none, of its ZeRO shards. `average`: the
    average of the adapter instead. Raises UserError for a checkpoint without one."""
    if average:
        averaged = averaged_weights(checkpoint)
        return {name.replace(".default.", "."): averaged[name] for name in averaged}
    if has_weights(checkpoint, ADAPTER):
        stored = TensorFiles(checkpoint, ADAPTER)
        return {name: stored[name] for name in stored}
    shards = ZeroShards(checkpoint)
    return {
        name.replace(".default.", "."): shards[name].to(torch.float32).clone() for name in shards if ".lora_" in name
    }
