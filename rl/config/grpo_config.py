"""A recipe in the words of TRL: its GRPOConfig."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from trl import GRPOConfig

from rl.config.checkpointing import NAMES
from rl.config.deepspeed_file import deepspeed_settings, filled_by_trainer
from rl.config.sections import Recipe
from rl.config.trainer_arguments import TAKEN
from uniar.errors import UserError
from uniar.reading.files import reason_of
from uniar.shareable import shareable

TIMEOUT = 7200
"""seconds that a process waits for the others by default. While a checkpoint or export is written they all do: that of
the released model is 140 GB, two hours at 20 MB/s. One that dies is noticed sooner (rl/distributed/peers.py)."""

PROJECT = "uniar-rl"
"""what W&B and trackio file runs under, where neither the recipe nor the environment names it"""


@dataclass
class RunConfig(GRPOConfig):
    """TRL's arguments, which describe themselves to every reporter as the recipe.

    What another section owns is in TRL's fields for TRL alone (`beta` is 0, as the KL term is not TRL's).
    """

    def describe(self, recipe: Recipe) -> "RunConfig":
        """Makes it known to reporters as `recipe`, whose output_dir is where the run is."""
        self._recipe = recipe
        self.output_dir = recipe.output_dir
        self.run_name = recipe.trainer.get("run_name") or Path(recipe.output_dir).name
        return self

    def to_dict(self) -> dict[str, Any]:
        """The recipe's sections, and under `trainer` all arguments of TRL's and transformers' that it may set; without
        keys, addresses and paths, as reporters pass it on."""
        free = {name: value for name, value in super().to_dict().items() if name in TAKEN}
        free |= {name: value for name, value in self._recipe.trainer.items() if name in NAMES}
        model = self._recipe.model
        # Reporters put the model's own configuration under these, which has the path that it was loaded from.
        beside = {"_name_or_path": model.path or model.preset, "peft_config": None}
        return shareable({**beside, **self._recipe.to_mapping(), "trainer": free})


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`, as overrides are written; values that are neither numbers nor strings as the
    string they print as."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return found


def grpo_config(recipe: Recipe, vision: Any, turns: Collection[str] = ("picture",)) -> RunConfig:
    """The recipe's `trainer` section over our defaults, and what other sections own in TRL's own names. Starts the
    process group where a launcher has started several.

    vision: the vision config of the model. turns: the kinds that are trained. rl/trainer/arguments_check.py has checked
    all that needs no device; raises UserError for what only this one refuses.
    """
    trainer = dict(recipe.trainer)
    if (told := deepspeed_settings(recipe)) is not None:
        trainer["deepspeed"] = filled_by_trainer(told)
    try:
        settings = trl_settings(recipe, trainer, _bits_per_image(recipe, vision))
        if "text" in turns:
            # Each backward pass is of several forwards, which together use every trained weight; DDP, left to look,
            # would look at the last one alone.
            settings["ddp_find_unused_parameters"] = False
        return RunConfig(**settings).describe(recipe)
    except (ValueError, TypeError, RuntimeError) as error:
        where = recipe.where("trainer")
        raise UserError(f"{where}: the trainer section does not work here: {reason_of(error)}.") from error


def trl_settings(recipe: Recipe, trainer: Mapping[str, Any], bits: int) -> dict[str, Any]:
    """Arguments of GRPOConfig. trainer: what is chosen of them; bits: of an image."""
    return {
        "logging_steps": 1,
        "ddp_timeout": TIMEOUT,
        "report_to": "none",
        "project": os.environ.get("WANDB_PROJECT", PROJECT),
        "bf16": recipe.model.dtype == "bfloat16",
        # Without this, transformers refuses bf16, and accelerate starts no process group, on a machine without a GPU.
        "use_cpu": not torch.accelerator.is_available(),
        **trainer,
        # Which layers it is for, the model knows itself.
        **{name: trainer[name] is not False for name in NAMES if trainer.get(name) is not None},
        "output_dir": recipe.output_dir,
        "seed": recipe.seed,
        "data_seed": recipe.data_seed,
        "shuffle_dataset": recipe.data.shuffle,
        "num_generations": recipe.rollout.samples_per_prompt,
        "num_iterations": recipe.algorithm.num_iterations,
        "temperature": recipe.rollout.temperature,
        "max_completion_length": bits,
        # The KL term is ours (rl/algorithm/losses/objective.py), so TRL must not load a reference of its own.
        "beta": 0.0,
        "loss_type": "grpo",
        "scale_rewards": "group",
        "remove_unused_columns": False,
        "disable_tqdm": True,
    }


def _bits_per_image(recipe: Recipe, vision: Any) -> int:
    levels, spatial, bsq_dim = vision.code_shape
    tokens = (recipe.rollout.height // vision.pixels_per_token) * (recipe.rollout.width // vision.pixels_per_token)
    return tokens * levels * spatial * bsq_dim
