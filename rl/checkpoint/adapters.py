"""LoRA adapters (arXiv 2106.09685) added to the weights they belong to: W + (alpha / r)·B·A."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from torch import Tensor

from rl.checkpoint.layout import ADAPTER_CONFIG
from rl.checkpoint.tensor_files import TensorFiles, averaged_weights
from rl.checkpoint.zero_shards import ZeroShards
from uniar.errors import UserError
from uniar.reading.files import read_object
from uniar.weight_files import ADAPTER, LazyTensors, has_weights

_PREFIX = "base_model.model."
# What a configuration of W + (alpha / r)·B·A may set: where, how large, and how it was loaded.
_PLAIN = {
    *(
        "peft_type",
        "peft_version",
        "task_type",
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
    ),
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "lora_dropout", "bias", "init_lora_weights"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "runtime_config", "eva_config"),
    *("megatron_core", "qalora_group_size"),  # names and sizes of what is off unless another key switches it on
}
# Others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) take a part out of W before training, which the factors put back.
_LEAVE_THE_BASE = {"none", "true", "false", "gaussian", "eva", "orthogonal", "mica"}


class MergedAdapter(LazyTensors):
    """`base` with an adapter added, each weight at its look-up: in float32, rounded once to its own type.

    adapter: peft's names → tensors. config: peft's configuration of it. where: what messages call the adapter.
    Raises UserError for tensors that are not a pair of LoRA factors of a weight in `base`, and as `require_plain_lora`.
    """

    def __init__(
        self, base: Mapping[str, Tensor], adapter: Mapping[str, Tensor], config: Mapping[str, Any], where: str
    ) -> None:
        require_plain_lora(config, where)
        self.base, self.adapter, self.config, self.where = base, adapter, config, where
        self.names = base
        self._factors: dict[str, dict[str, str]] = {}
        for name in adapter:
            module, _, factor = name.removeprefix(_PREFIX).replace(".default.", ".").rpartition(".lora_")
            if factor not in ("A.weight", "B.weight") or f"{module}.weight" not in base:
                raise UserError(f"adapter tensor {name} is not a LoRA factor of a weight in the model it is added to.")
            self._factors.setdefault(f"{module}.weight", {})[factor[0]] = name
        for name, factors in self._factors.items():
            if len(factors) < 2:
                raise UserError(f"the adapter has only the factor {factors.popitem()[1]} of {name}.")

    def __getitem__(self, name: str) -> Tensor:
        weight = self.base[name]
        if name not in self._factors:
            return weight
        a, b = (self.adapter[self._factors[name][factor]].float() for factor in "AB")
        rank, alpha = self._setting("rank_pattern", "r", name), self._setting("alpha_pattern", "lora_alpha", name)
        if (len(b), rank, rank, a.shape[1]) != (*b.shape, *a.shape) or (len(b), a.shape[1]) != weight.shape:
            raise UserError(
                f"the factors of {name} in {self.where} have shapes {tuple(b.shape)} and {tuple(a.shape)}; the weight "
                f"has {tuple(weight.shape)}, and the adapter's configuration says rank {rank}."
            )
        added = (b @ a).to(weight.device) * (alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank))
        return (weight.float() + added).to(weight.dtype)

    def _setting(self, pattern: str, default: str, name: str) -> float:
        """The rank or alpha of a weight: that of the first pattern of module names that matches, or all modules'."""
        patterns = self.config.get(pattern) or {}
        return patterns.get(get_pattern_key(list(patterns), name.removesuffix(".weight")), self.config[default])


def merge_checkpoint(checkpoint: Path, source: Path, *, average: bool = False) -> MergedAdapter:
    """The model in `source` with the adapter of a checkpoint folder added, or with the average of that adapter."""
    config, where = read_config(checkpoint), f"the adapter of {checkpoint}"
    require_plain_lora(config, where)
    return MergedAdapter(TensorFiles(source), trained_adapter(checkpoint, average=average), config, where)


def merge_state(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> MergedAdapter:
    """A peft model's own state dict, whole, → its base weights with the adapter added. The state is left as it is."""
    base, adapter = {}, {}
    for name, tensor in state.items():
        if ".lora_" in name:
            adapter[name] = tensor
        else:
            base[name.removeprefix(_PREFIX).replace(".base_layer.", ".")] = tensor
    return MergedAdapter(base, adapter, config, "the trained model's adapter")


def read_config(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's adapter_config.json. Raises UserError when it is not one."""
    config = read_object(checkpoint / ADAPTER_CONFIG)
    if "peft_type" not in config:
        raise UserError(
            f"{checkpoint / ADAPTER_CONFIG} is not the configuration of a peft adapter: it has no peft_type."
        )
    return config


def require_plain_lora(config: Mapping[str, Any], where: str) -> None:
    """Raises UserError for a peft configuration of anything else than (alpha / r)·B·A added to the weights as the base
    has them, and for ranks and alphas that are none."""
    advice = "only plain LoRA is merged here, merge it with peft itself"
    if config.get("peft_type") != "LORA":
        raise UserError(f"{where} is of type {config.get('peft_type')}; {advice}.")
    if (start := str(config.get("init_lora_weights")).lower()) not in _LEAVE_THE_BASE:
        raise UserError(
            f"{where} was begun with init_lora_weights {start!r}, which changes the weights it is added to; {advice}, "
            "or save it as plain LoRA (path_initial_model_for_weight_conversion of peft's save_pretrained)."
        )
    if other := sorted(name for name in config if name not in _PLAIN and config[name]):
        raise UserError(f"{where} sets {other[0]}; {advice}.")
    if config.get("bias") not in (None, "none"):
        raise UserError(f"{where} sets bias {config['bias']!r}; {advice}.")
    for key, pattern, kinds in (("r", "rank_pattern", int), ("lora_alpha", "alpha_pattern", (int, float))):
        patterns = config.get(pattern) or {}
        for value in (config.get(key), *(patterns.values() if isinstance(patterns, dict) else [patterns])):
            if not isinstance(value, kinds) or isinstance(value, bool) or not 0 < value < math.inf:
                raise UserError(f"{where} has {value!r} in {key} or {pattern}; it must be a number above 0.")


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
