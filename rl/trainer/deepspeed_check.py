"""`trainer.deepspeed` read and checked before anything is loaded: by DeepSpeed itself, one sentence per mistake."""

import copy
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from trl import GRPOConfig

from rl.config.deepspeed_file import deepspeed_settings, filled_by_trainer
from rl.config.sections import Recipe
from uniar.errors import UserError, did_you_mean
from uniar.reading.files import reason_of

_OF_PYTHON = re.compile(
    r"object has no attribute|object is not|unsupported operand|not supported between|must be \w+, not"
)
"""what Python says where a library takes a value for one of another type"""

REFUSALS = (ValueError, TypeError, KeyError, AttributeError, AssertionError, RuntimeError, ImportError, ArithmeticError)


class _Asked(dict):
    """A configuration that notes which of its keys are looked for."""

    def __init__(self, content: dict, asked: set[str]) -> None:
        super().__init__(content)
        self.asked = asked

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __copy__(self) -> "_Asked":
        return _Asked(self, self.asked)


def check_deepspeed_settings(recipe: Recipe, args: GRPOConfig) -> None:
    """Raises UserError for a configuration that DeepSpeed does not take, naming the key, or that transformers finds to
    contradict the recipe; and for a process that no launcher has started, in which DeepSpeed would look for MPI.

    args: the recipe's arguments, `deepspeed` left out.
    """
    given, named = deepspeed_settings(recipe) or {}, recipe.trainer["deepspeed"]
    where, name = recipe.where("trainer.deepspeed"), "trainer.deepspeed"
    name += f" '{named}'" if isinstance(named, str) else ""
    if (refusal := _refusal(given, args)) is not None:
        blamed = [key for key in given if _refusal({k: v for k, v in given.items() if k != key}, args) is None]
        key = _key_of(refusal, blamed)
        raise UserError(f"{where}: {name}{f', {key}' if key else ''}: {_said(refusal)}.") from refusal
    if "RANK" not in os.environ:
        raise UserError(
            f"{where}: trainer.deepspeed needs a launcher, for one process too: "
            f"torchrun --nproc_per_node 1 -m rl.train {recipe.source}."
        )


def _refusal(given: dict, args: GRPOConfig) -> Exception | None:
    """What transformers, or DeepSpeed, raises for a configuration; None for one that it takes."""
    from deepspeed.runtime import lr_schedules
    from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS, DeepSpeedConfig
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    try:
        # Held by a weak reference only, it is forgotten with this function: nothing is sharded because of it.
        filled = HfTrainerDeepSpeedConfig(copy.deepcopy(filled_by_trainer(given)))
        filled.trainer_config_process(args)
        # Sizes of buckets that are "auto" go by the model's; any stands for it here.
        filled.trainer_config_finalize(args, SimpleNamespace(config=SimpleNamespace(hidden_size=1024)), 1000)
        # DeepSpeed would count one process, as none has met another yet.
        filled.config.pop("train_batch_size", None)
        asked: set[str] = {"optimizer", "scheduler", "train_batch_size"}
        found = DeepSpeedConfig(_Asked(filled.config, asked))
        _check_offloads(given)
        for key in given:
            if key not in asked:
                raise KeyError(f"DeepSpeed has no setting '{key}'.{did_you_mean(key, asked)}")
        import torch

        name = found.optimizer_name
        if name is not None and name not in DEEPSPEED_OPTIMIZERS and not hasattr(torch.optim, name):
            raise KeyError(f"optimizer.type '{name}' is none of {', '.join(DEEPSPEED_OPTIMIZERS)}")
        if (name := found.scheduler_name) is not None:
            schedule = getattr(lr_schedules, name, None) or getattr(torch.optim.lr_scheduler, name, None)
            if schedule is None:
                raise KeyError(f"scheduler.type '{name}' is none of {', '.join(lr_schedules.VALID_LR_SCHEDULES)}")
            weight = torch.nn.Parameter(torch.zeros(1))
            schedule(torch.optim.AdamW([weight], lr=args.learning_rate), **(found.scheduler_params or {}))
    except Exception as error:  # DeepSpeed has kinds of its own
        return error
    return None


def _check_offloads(given: dict) -> None:
    """DeepSpeed itself looks for the folder, and compiles what writes to it, only when weights are loaded."""
    for section, asked in (given.get("zero_optimization") or {}).items():
        if not (isinstance(asked, dict) and asked.get("device") == "nvme"):
            continue
        if not isinstance(path := asked.get("nvme_path"), str) or not Path(path).is_dir():
            raise ValueError(f"{section}.nvme_path is {path!r}, expected a folder that is there")
        from deepspeed.ops.op_builder import AsyncIOBuilder

        if not AsyncIOBuilder().is_compatible(verbose=False):
            raise ValueError(f"{section}.device is 'nvme', which needs the headers of libaio (libaio-dev)")


def _key_of(error: Exception, blamed: list[str]) -> str:
    """Dotted: pydantic says which key of a section, elimination which section."""
    inner = [".".join(map(str, one["loc"])) for one in error.errors()] if hasattr(error, "errors") else []
    return ".".join([*blamed[:1], *inner[:1]])


def _said(error: Exception) -> str:
    if hasattr(error, "errors"):  # pydantic's
        return error.errors()[0]["msg"].rstrip(" .")
    if _OF_PYTHON.search(str(error)):
        return "a value of another type is needed"
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()).rstrip(" .") or reason_of(error)
