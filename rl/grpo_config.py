"""A recipe in the words of TRL: its GRPOConfig."""

from typing import Any

import torch
from transformers.integrations import get_reporting_integration_callbacks
from trl import GRPOConfig

from rl.config import Recipe
from uniar.errors import UserError


def grpo_config(recipe: Recipe, vision: Any) -> GRPOConfig:
    """The recipe's `trainer` section over our defaults, and what other sections own in TRL's own names.

    vision: the vision config of the model. Raises UserError for what TRL does not take.
    """
    chosen = {
        "logging_steps": 1,
        "report_to": "none",
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
        args = GRPOConfig(**chosen, **owned)
        for integration in get_reporting_integration_callbacks(args.report_to):
            integration()  # which fails where its package is not installed
        return args
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{recipe.source}: the trainer section does not work: {error}") from error


def _bits_an_image(recipe: Recipe, vision: Any) -> int:
    levels, spatial, bsq_dim = vision.code_shape
    tokens = (recipe.rollout.height // vision.pixels_per_token) * (recipe.rollout.width // vision.pixels_per_token)
    return tokens * levels * spatial * bsq_dim
