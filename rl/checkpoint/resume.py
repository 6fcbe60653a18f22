"""Going on from a checkpoint that other processes wrote: what can be taken along, and how.

On the same number of processes, under the same engine, everything is (transformers and DeepSpeed load their own). An
optimizer that ZeRO has cut into as many parts as there were processes is not put together again for another number:
then weights, schedule, counters and the place in the data are taken along, and the optimizer's moments are lost.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from trl import GRPOConfig

from rl.checkpoint.adapters import trained_adapter
from rl.checkpoint.folders import processes_of
from rl.checkpoint.layout import ADAPTER_CONFIG
from rl.checkpoint.weights import trained_weights
from rl.distributed.engine import Engine, gathered_parameter, own_schedule, place_deepspeed_schedule
from uniar.errors import UserError


def only_weights_of(checkpoint: Path, args: GRPOConfig) -> bool:
    """Whether only the weights of a checkpoint can be loaded here; says on the console, loudly, what is lost."""
    written, here = Engine.that_wrote(checkpoint, processes_of(checkpoint) or 1), Engine.of(args)
    if here.reads(written):
        if written.processes != here.processes and args.process_index == 0:
            print(f"{checkpoint.name} was written by {written}; it is loaded whole on {here}.", flush=True)
        return False
    if args.process_index == 0:
        print(
            f"WARNING: {checkpoint} was written by {written}, and this is {here}: ONLY ITS WEIGHTS are loaded. Lost "
            "are the optimizer's moments, which start from zero, and what its float32 weights have more digits than "
            "model.dtype. Kept are the weights, the step, the learning rate's schedule and the place in the data, "
            "counted in updates.",
            flush=True,
        )
    return True


def load_weights(model: nn.Module, checkpoint: Path, source: Path) -> None:
    """Puts a checkpoint's trained weights into a model that has just been made from `source`. Collective under ZeRO-3.

    Raises UserError for a checkpoint of another model, or of adapters where the model has none.
    """
    adapters = (checkpoint / ADAPTER_CONFIG).is_file()
    weights: Mapping[str, Tensor]
    weights = trained_adapter(checkpoint) if adapters else trained_weights(checkpoint, source)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    named = {name.replace(".default.", ".") if adapters else name: trained[name] for name in trained}
    if missing := [name for name in named if name not in weights]:
        raise UserError(
            f"{checkpoint} has no weight {missing[0]}, which this recipe trains; resume it as it was trained."
        )
    put_weights(named, weights, checkpoint)


def put_weights(parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor], where: Path) -> None:
    """Copies weights into the parameters of their names. Collective under ZeRO-3. where: what errors call the weights.

    Raises UserError for one that is missing or has another shape.
    """
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name not in weights:
                raise UserError(f"{where} has no weight {name}; it is of another model.")
            with gathered_parameter(parameter, changes=True):
                stored = weights[name]
                if stored.shape != parameter.shape:
                    found, expected = tuple(stored.shape), tuple(parameter.shape)
                    raise UserError(f"{where}: {name} has shape {found}, expected {expected}.")
                parameter.copy_(stored)


def settings_of_groups(optimizer: Any) -> list[dict[str, Any]]:
    """What each group of an optimizer is set to, its weights left out."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def apply_settings(optimizer: Any, scheduler: Any, settings: Sequence[Mapping[str, Any]]) -> None:
    """Puts the settings of a new optimizer's groups, whose schedule had just been made, over those that were restored
    with a checkpoint, and the learning rate to where the schedule is. What the recipe has not changed stays as it is to
    the bit: a schedule is a function of its step and of the rate at its start.

    optimizer, scheduler: as transformers has them, in accelerate's wrappers under DeepSpeed.
    """
    scheduler = own_schedule(scheduler)
    for group, new in zip(optimizer.param_groups, settings, strict=True):
        group.update(new)
    if not isinstance(scheduler, LambdaLR):
        place_deepspeed_schedule(scheduler)
        return
    scheduler.base_lrs = [new["initial_lr"] for new in settings]
    scheduler._last_lr = [
        base * factor(scheduler.last_epoch)
        for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate in zip(optimizer.param_groups, scheduler._last_lr, strict=True):
        group["lr"] = rate


def forward_schedule(scheduler: Any, updates: int) -> None:
    """Brings a new learning-rate schedule to where it is after so many updates."""
    scheduler = own_schedule(scheduler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no update has been made yet
        for _ in range(updates):
            scheduler.step()
