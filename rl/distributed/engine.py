"""The engine that holds the policy: DeepSpeed under accelerate, or none. What of either has no public interface (fields
of weights and optimizers, names and content of DeepSpeed's files) is known here alone.

DeepSpeed's files in a checkpoint, which training writes and which are never unpickled whole here:

    <checkpoint>/latest                                     the name of the folder that follows
    <checkpoint>/global_stepN/*_model_states.pt             names, shapes, frozen weights; ZeRO-3: one file per rank
    <checkpoint>/global_stepN/*_optim_states.pt             one file per rank: its part of the float32 weights
"""

import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from rl.config.deepspeed_file import deepspeed_settings
from rl.config.sections import Recipe
from rl.distributed.setup import world_size
from uniar.errors import UserError
from uniar.reading.files import reason_of

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import Trainer, TrainingArguments
    from trl import GRPOConfig

LATEST = "latest"
_MODEL_STATES, _OPTIMIZER_STATES = "*_model_states.pt", "*_optim_states.pt"


@dataclass(frozen=True)
class Engine:
    """What divides an optimizer among processes."""

    deepspeed: bool
    stage: int
    """ZeRO's; 0 where every process has the whole optimizer"""
    processes: int

    @classmethod
    def of(cls, args: "GRPOConfig") -> "Engine":
        """This run's."""
        plugin = args.deepspeed_plugin
        return cls(plugin is not None, 0 if plugin is None else plugin.zero_stage, args.world_size)

    @classmethod
    def asked_for(cls, recipe: Recipe) -> "Engine":
        """This run's, before the trainer's arguments are made."""
        settings = deepspeed_settings(recipe)
        stage = ((settings or {}).get("zero_optimization") or {}).get("stage", 0)
        return cls(settings is not None, int(stage), world_size())

    @classmethod
    def that_wrote(cls, checkpoint: Path, processes: int) -> "Engine":
        """A checkpoint's, told by its files. ZeRO-1 is not told from ZeRO-2, whose files are the same."""
        if not has_shards(checkpoint):
            return cls(False, 0, processes)
        shards = len(list(checkpoint.glob(f"global_step*/{_OPTIMIZER_STATES}")))
        if not shards:
            return cls(True, 0, processes)
        return cls(True, 2 if any(checkpoint.glob("global_step*/mp_rank_*_model_states.pt")) else 3, shards)

    def reads(self, other: "Engine") -> bool:
        """Whether a checkpoint that `other` wrote can be loaded whole."""
        return self._layout == other._layout

    @property
    def _layout(self) -> tuple[bool, int, int | None]:
        return self.deepspeed, max(self.stage, 2) if self.stage else 0, self.processes if self.stage else None

    def __str__(self) -> str:
        under = f" under ZeRO-{self.stage}" if self.stage else " under DeepSpeed" if self.deepspeed else ""
        return f"{self.processes} process{'es' * (self.processes != 1)}{under}"


def prepare_deepspeed_on_cpu(recipe: Recipe) -> None:
    """DeepSpeed without an accelerator: gloo, before the Trainer asks for a backend, and no kernel to be compiled."""
    if recipe.trainer.get("deepspeed") is None or torch.accelerator.is_available():
        return
    import deepspeed

    from rl.config.grpo_config import TIMEOUT  # with TRL

    # Its shared-memory collective would be compiled at the first run, for a minute and a half.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    seconds = recipe.trainer.get("ddp_timeout", TIMEOUT)
    deepspeed.init_distributed(dist_backend="gloo", timeout=timedelta(seconds=seconds))


@contextmanager
def unsharded(args: "TrainingArguments") -> Iterator[None]:
    """Models that are made inside have whole weights, under ZeRO-3 as well."""
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if (
            config := getattr(args, "hf_deepspeed_config", None)
        ) is not None:  # a run without DeepSpeed has no such field
            set_hf_deepspeed_config(config)


# A model under the engine ---------------------------------------------------------------------------------------------


class Slice(NamedTuple):
    """Consecutive elements of a flattened weight."""

    start: int
    values: Tensor
    """(n,); empty where other ranks own the whole weight"""


def owned_slice(parameter: nn.Parameter, rank: int, ranks: int, *, float32: bool) -> Slice:
    """What this rank owns of a weight: a view of it, or a converted copy. An equal part where nothing is divided, under
    ZeRO-1 and ZeRO-2 what its optimizer owns, under ZeRO-3 the shard.

    float32: what the optimizer updates, in float32; else the weight as the model computes with it.
    """
    if hasattr(parameter, "ds_tensor"):
        shard = parameter.ds_tensor
        if float32 and parameter.requires_grad:
            from deepspeed.utils import safe_get_local_fp32_param

            shard = safe_get_local_fp32_param(parameter)
        start = rank * parameter.ds_tensor.numel()
        values = shard[: max(0, parameter.ds_numel - start)]  # the last shard is padded
        return Slice(start, values.float() if float32 else values)
    if float32 and hasattr(parameter, "_hp_mapping"):
        if parameter._hp_mapping is None:
            return Slice(0, torch.empty(0, device=parameter.device))
        values = parameter._hp_mapping.get_hp_fragment().flatten().float()
        return Slice(parameter._hp_mapping.lp_fragment_address.start, values)
    each = -(-parameter.numel() // ranks)
    start = min(rank * each, parameter.numel())
    values = parameter.data.flatten()[start : start + each]
    return Slice(start, values.float() if float32 else values)


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """Of a weight that may be sharded."""
    return getattr(parameter, "ds_shape", parameter.shape)


def gathered_parameter(parameter: nn.Parameter, *, changes: bool = False) -> AbstractContextManager:
    """Under ZeRO-3, a weight that is whole inside the block; with `changes`, what is written to it there is kept.
    Collective."""
    if not hasattr(parameter, "ds_tensor"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if changes else None)


def gathered_state(trainer: "Trainer") -> Mapping[str, Tensor] | None:
    """The policy's whole weights, on the first rank, where ZeRO-3 shards them; None elsewhere. Collective."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    # Asked of the engine itself: accelerate refuses where the recipe leaves checkpoints sharded.
    return trainer.model_wrapped._zero3_consolidated_16bit_state_dict() if is_deepspeed_zero3_enabled() else None


def sharded_beside_policy(model: nn.Module, accelerator: "Accelerator") -> nn.Module | None:
    """A model that is not trained, sharded over the ranks as ZeRO-3 does the policy; None where nothing is sharded."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None or plugin.zero_stage != 3:
        return None
    from trl.models import prepare_deepspeed

    return prepare_deepspeed(model, accelerator)


# Updates --------------------------------------------------------------------------------------------------------------


def makes_updates_itself(trainer: "Trainer") -> bool:
    """Whether the engine has made the update, or left out one whose gradient is not finite, before the Trainer would:
    DeepSpeed does."""
    return trainer.is_deepspeed_enabled


def cannot_skip_updates(trainer: "Trainer") -> bool:
    """DeepSpeed without ZeRO does not look at gradients."""
    return trainer.is_deepspeed_enabled and not hasattr(trainer.model_wrapped.optimizer, "overflow")


def left_out_update(trainer: "Trainer") -> bool:
    """Whether an engine that makes updates itself has left out the last one."""
    return getattr(trainer.model_wrapped.optimizer, "overflow", False)


def own_schedule(scheduler: Any) -> Any:
    """The learning-rate schedule itself: accelerate's wrapper under DeepSpeed lets its engine step."""
    return getattr(scheduler, "scheduler", scheduler)


def place_deepspeed_schedule(schedule: Any) -> None:
    """Puts a schedule of DeepSpeed's own, which reads its settings from the configuration, to where it was."""
    schedule.step(schedule.last_batch_iteration)


# DeepSpeed's files ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shards:
    """What DeepSpeed's files of a checkpoint hold of the weights; tensors stay mapped on the disk."""

    stage: int
    ranks: int
    buffers: dict[str, Tensor]
    frozen: dict[str, tuple[list[Tensor], torch.Size]]
    """name → its flat pieces in order, and its shape"""
    groups: Sequence[Mapping[str, torch.Size]]
    """the optimizer's groups: name → shape, in the order in which they lie"""
    parts: list[Sequence[Tensor]]
    """of each rank: flat float32 tensors; before ZeRO-3 one per group"""
    paddings: Sequence[Sequence[int]] | None
    """of each group: numbers that follow each weight"""
    shared: Mapping[str, str]
    """a weight's other name → its name"""


def has_shards(checkpoint: Path) -> bool:
    return (checkpoint / LATEST).is_file()


def read_shards(checkpoint: Path) -> Shards:
    """Raises UserError for a folder without DeepSpeed's files, an incomplete one, and a file that holds anything else
    than tensors, plain containers and three harmless classes."""
    folder = _shard_folder(checkpoint)
    models = [_load(file) for file in _files(folder, _MODEL_STATES)]
    optimizers = [_load(file)["optimizer_state_dict"] for file in _files(folder, _OPTIMIZER_STATES)]
    model, first = models[0], optimizers[0]
    stage, ranks = int(first["zero_stage"]), first["partition_count"]
    ranks = max(ranks) if isinstance(ranks, list) else ranks
    if len(optimizers) != ranks:
        raise UserError(
            f"{folder} has {len(optimizers)} {_OPTIMIZER_STATES} files of the {ranks} that were written; "
            "all of them are needed."
        )
    owners = models if stage == 3 else models[:1]
    return Shards(
        stage,
        ranks,
        buffers={name: model["module"][name] for name in model["buffer_names"]},
        frozen={
            name: ([owner["frozen_param_fragments"][name].flatten() for owner in owners], shape)
            for name, shape in (model["frozen_param_shapes"] or {}).items()
        },
        groups=model["param_shapes"],
        parts=[rank["fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"] for rank in optimizers],
        paddings=first.get("param_alignment_paddings"),
        shared=model["shared_params"],
    )


def _shard_folder(checkpoint: Path) -> Path:
    latest = checkpoint / LATEST
    if not latest.is_file():
        raise UserError(f"{checkpoint} has no file '{LATEST}', so it is not a DeepSpeed checkpoint.")
    tag = latest.read_text().strip()
    folder = checkpoint / tag
    if not re.fullmatch(r"[\w.-]+", tag) or not folder.is_dir():
        raise UserError(f"{latest} names {tag!r}, which is not a folder beside it.")
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
        raise UserError(f"{file} cannot be read as a DeepSpeed shard: {reason_of(error)}") from error
