"""The `trainer` section tried out before anything is loaded: TRL's and transformers' own checks, the optimizer and the
schedule on a weight of one number, the reporters, the DeepSpeed configuration.

Whatever a library refuses comes back as one sentence with the key, and the line that it was written in.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate.utils import TorchDynamoPlugin
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks
from trl import GRPOConfig

from rl.config.grpo_config import trl_settings
from rl.config.sections import Recipe
from rl.distributed.setup import is_first_process, world_size
from rl.trainer import wandb_session
from rl.trainer.deepspeed_check import check_deepspeed_settings
from uniar.errors import UserError
from uniar.reading.files import reason_of

REFUSALS = (ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError, OSError, ArithmeticError)
"""what libraries raise for arguments that they do not take"""


class _Tried(GRPOConfig):
    """TRL's arguments with all their checks, but without a device: no process group is started."""

    device = torch.device("cpu")
    world_size = property(lambda self: world_size())


def check_trainer(recipe: Recipe) -> None:
    """Raises UserError for a `trainer` section that cannot work. Loads nothing and starts nothing."""
    settings = {name: value for name, value in recipe.trainer.items() if name != "deepspeed"}

    def tried(chosen: Mapping[str, Any]) -> GRPOConfig:
        args = _Tried(**trl_settings(recipe, chosen, bits=1))
        _try_optimizer(args)
        if args.torch_compile:
            TorchDynamoPlugin(backend=args.torch_compile_backend)
        return args

    args = _attempt(recipe, settings, tried)
    _check_reporters(recipe, args)
    if recipe.trainer.get("deepspeed") is not None:
        check_deepspeed_settings(recipe, args)


def _attempt(recipe: Recipe, settings: Mapping[str, Any], attempt: Callable[[Mapping[str, Any]], Any]) -> Any:
    """What `attempt` makes of the settings. Raises UserError with the key whose name the refusal holds, or else the one
    without which there is none."""
    try:
        return attempt(settings)
    except REFUSALS as error:
        blamed = [name for name in settings if re.search(rf"\b{name}\b", str(error))]
        blamed = blamed or [name for name in settings if _works(settings, name, attempt)]
        key = f"trainer.{max(blamed, key=len)}" if blamed else "trainer"
        value = f" is {settings[key.removeprefix('trainer.')]!r}, which" if blamed else ", which"
        raise UserError(f"{recipe.where(key)}: {key}{value} does not work: {said(error)}.") from error


def _works(settings: Mapping[str, Any], left_out: str, attempt: Callable[[Mapping[str, Any]], Any]) -> bool:
    try:
        attempt({name: value for name, value in settings.items() if name != left_out})
    except REFUSALS:
        return False
    return True


def said(error: BaseException) -> str:
    """A library's message in one line; of a KeyError, which says the key alone, the kind too."""
    text = " ".join(str(error).split()).rstrip(" .") or type(error).__name__
    return f"{type(error).__name__} {text}" if isinstance(error, KeyError) else text


def _try_optimizer(args: GRPOConfig) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    try:
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
    except ValueError as error:
        if args.optim_target_modules and "pass a model" in str(error):
            return  # GaLore, APOLLO: their package is there; what they make of the model is seen when it is
        raise
    optimizer = kind([{"params": [weight], "weight_decay": args.weight_decay}], **settings)
    updates = args.max_steps if args.max_steps > 0 else 1000
    warmup = args.get_warmup_steps(updates)
    scheduler = get_scheduler(
        args.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=warmup,
        num_training_steps=updates,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
    for name, value in (("lr_scheduler_kwargs", args.lr_scheduler_kwargs), ("warmup_steps", args.warmup_steps)):
        if value and args.lr_scheduler_type == "constant":
            raise ValueError(f"the schedule constant has no use for {name}")
    checkpoint(torch.exp, weight, **{"use_reentrant": False, **(args.gradient_checkpointing_kwargs or {})})
    for step in (0, 1, warmup, warmup + 1, updates - 1, updates):
        factor = scheduler.lr_lambdas[0](step)
        if isinstance(factor, complex) or not math.isfinite(factor):
            raise ValueError(f"the schedule {args.lr_scheduler_type} gives {factor} times the learning rate")


def _check_reporters(recipe: Recipe, args: GRPOConfig) -> None:
    try:
        for integration in get_reporting_integration_callbacks(args.report_to):
            integration()  # which fails where its package is not installed
    except (*REFUSALS, AssertionError) as error:
        found = f"trainer.report_to is {recipe.trainer['report_to']!r}, which does not work"
        raise UserError(f"{recipe.where('trainer.report_to')}: {found}: {reason_of(error)}.") from error
    if "wandb" in args.report_to and is_first_process() and (reason := wandb_session.refusal()) is not None:
        raise UserError(
            f"{recipe.where('trainer.report_to')}: trainer.report_to has wandb, but {reason}; log in with "
            "`wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline."
        )
