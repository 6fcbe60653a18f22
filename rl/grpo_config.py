"""A recipe in the words of TRL: its GRPOConfig."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.integrations import get_reporting_integration_callbacks
from trl import GRPOConfig

from rl.config import Recipe
from rl.trainer_arguments import may_be_set
from uniar.errors import UserError

PROJECT = "uniar-rl"
"""what W&B and trackio file runs under, where neither the recipe nor the environment names it"""
_WANDB_PROJECT = "WANDB_PROJECT"


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
        """The recipe's sections, and under `trainer` all arguments of TRL's and transformers' that it may set."""
        free = {name: value for name, value in super().to_dict().items() if may_be_set(name)}
        return {**self._recipe.to_mapping(), "trainer": free}

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Within the block W&B, which transformers tells no project, finds it where it looks."""
        before = os.environ.get(_WANDB_PROJECT)
        os.environ[_WANDB_PROJECT] = self.project
        try:
            yield
        finally:
            del os.environ[_WANDB_PROJECT]
            if before is not None:
                os.environ[_WANDB_PROJECT] = before


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


def grpo_config(recipe: Recipe, vision: Any) -> RunConfig:
    """The recipe's `trainer` section over our defaults, and what other sections own in TRL's own names.

    vision: the vision config of the model. Raises UserError for what TRL does not take.
    """
    chosen = {
        "logging_steps": 1,
        "report_to": "none",
        "project": os.environ.get(_WANDB_PROJECT, PROJECT),
        "bf16": recipe.model.dtype == "bfloat16",
        # Without this, transformers refuses bf16, and accelerate starts no process group, on a machine without a GPU.
        "use_cpu": not torch.accelerator.is_available(),
        **recipe.trainer,
    }
    owned = {
        "output_dir": recipe.output_dir,
        "seed": recipe.seed,
        "data_seed": recipe.data_seed,
        "shuffle_dataset": recipe.data.shuffle,
        "num_generations": recipe.rollout.samples_per_prompt,
        "num_iterations": recipe.algorithm.num_iterations,
        "temperature": recipe.rollout.temperature,
        "max_completion_length": _bits_an_image(recipe, vision),
        # The KL term is ours (rl/losses.py), so TRL must not load a reference of its own.
        "beta": 0.0,
        "loss_type": "grpo",
        "scale_rewards": "group",
        "remove_unused_columns": False,
        "disable_tqdm": True,
    }
    if chosen.get("learning_rate", 0) < 0:
        raise UserError(f"{recipe.source}: trainer.learning_rate is {chosen['learning_rate']:g}, expected 0 or more.")
    try:
        args = RunConfig(**chosen, **owned).describe(recipe)
        for integration in get_reporting_integration_callbacks(args.report_to):
            integration()  # which fails where its package is not installed
        return args
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{recipe.source}: the trainer section does not work: {error}") from error


def _bits_an_image(recipe: Recipe, vision: Any) -> int:
    levels, spatial, bsq_dim = vision.code_shape
    tokens = (recipe.rollout.height // vision.pixels_per_token) * (recipe.rollout.width // vision.pixels_per_token)
    return tokens * levels * spatial * bsq_dim
