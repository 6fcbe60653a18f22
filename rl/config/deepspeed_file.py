"""`trainer.deepspeed`: a JSON file, or what could stand in one."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rl.config.sections import Recipe
from uniar.errors import UserError
from uniar.reading.files import read_object


def deepspeed_settings(recipe: Recipe) -> dict[str, Any] | None:
    """What DeepSpeed is told; None where it is not used. Raises UserError for a file that cannot be read, and for
    anything else than a mapping."""
    given, where, name = recipe.trainer.get("deepspeed"), recipe.where("trainer.deepspeed"), "trainer.deepspeed"
    if isinstance(given, str):
        if not Path(given).is_file():
            raise UserError(f"{where}: {name} names {given}, which is not a file; see configs/deepspeed/.")
        try:
            name, given = f"{name} '{given}'", read_object(Path(given), "DeepSpeed configuration")
        except UserError as error:
            raise UserError(f"{where}: {name}: {error}") from error
    if given is not None and not isinstance(given, dict):
        raise UserError(f"{where}: {name} is not a mapping of settings but {type(given).__name__}.")
    return given


def filled_by_trainer(settings: dict[str, Any]) -> dict[str, Any]:
    """The same with batch sizes and clipping left to the recipe where nothing is said of them: accelerate fills in what
    is "auto" and nothing else. DeepSpeed does not start without the first, and clips nothing without the last. And with
    `accumulates_in_float32`, so that what small micro-batches add is not rounded away."""
    from_recipe = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    filled = {**dict.fromkeys(from_recipe, "auto"), **settings}
    if accumulates_in_float32(settings):
        filled["data_types"] = {"grad_accum_dtype": "fp32", **(settings.get("data_types") or {})}
    return filled


def accumulates_in_float32(settings: Mapping[str, Any] | None) -> bool:
    """Whether the gradients of an update's micro-batches are added up in float32, whatever the model's type: under
    ZeRO-2 and ZeRO-3, unless the settings say otherwise. Stage 1 would take another optimizer of DeepSpeed's for it,
    and where the optimizer is on the CPU memory is dear."""
    zero = (settings or {}).get("zero_optimization") or {}
    said = ((settings or {}).get("data_types") or {}).get("grad_accum_dtype", "fp32")
    on_cpu = (zero.get("offload_optimizer") or {}).get("device", "none") != "none"
    return str(zero.get("stage")) in ("2", "3") and not on_cpu and said == "fp32"


def with_deepspeed_settings(recipe: Recipe) -> Recipe:
    """The recipe with these settings in the place of their file's name, so that it says by itself what was trained
    with. Raises UserError."""
    if not isinstance(recipe.trainer.get("deepspeed"), str):
        return recipe
    return replace(recipe, trainer={**recipe.trainer, "deepspeed": deepspeed_settings(recipe)})
