"""From a YAML file and command-line overrides to a checked `Recipe`."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rl.config import Recipe, RewardEntry
from rl.loss_settings import misfit
from rl.settings import Origins, build, key_of, origin_of, settings_of
from rl.trainer_arguments import check_trainer_arguments
from rl.yaml_files import parse_yaml, read_yaml
from uniar.errors import UserError


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, merge it over its base, apply `key.sub=value` overrides, fill in defaults and check it all.

    Raises UserError naming the file and line (or the override), what was found and what is valid.
    """
    mapping, origins = _read_with_base(Path(path), ())
    for override in overrides:
        _override(mapping, origins, override)
    return recipe_from_mapping(mapping, str(path), origins)


def recipe_from_mapping(mapping: Mapping[str, Any], source: str = "recipe", origins: Origins | None = None) -> Recipe:
    """A checked recipe from plain values, as YAML would give them; `source` names it in messages and, without an
    `output_dir`, gives the run folder its name."""
    origins = origins or {(): source}
    mapping = dict(mapping)
    for section in ("rewards", "eval_rewards"):  # a bare name is short for {use: name}
        if isinstance(mapping.get(section), list):
            mapping[section] = [{"use": item} if isinstance(item, str) else item for item in mapping[section]]
    recipe = build(Recipe, mapping, (), origins)
    _check_rewards(recipe, origins)
    check_trainer_arguments(recipe.trainer, origins)
    recipe = dataclasses.replace(recipe, base=None, source=source)
    recipe = dataclasses.replace(recipe, output_dir=recipe.output_dir or recipe.default_folder)
    _check_choices(recipe, origins)
    _check_rollout_boundaries(recipe, origins)
    return recipe


# Reading -------------------------------------------------------------------------------------------------------------


def _read_with_base(path: Path, children: tuple[Path, ...]) -> tuple[dict[str, Any], Origins]:
    mapping, origins = read_yaml(path, "recipe")
    if not isinstance(mapping, dict):
        raise UserError(f"{path}: a recipe is a mapping of sections; found {type(mapping).__name__}.")
    base = mapping.pop("base", None)
    if base is None:
        return mapping, origins
    where = origin_of(("base",), origins)
    if not isinstance(base, str):
        raise UserError(f"{where}: base is {base!r}, expected the path of a recipe.")
    base_path = path.parent / base
    chain = (*children, path.resolve())
    if base_path.resolve() in chain:
        raise UserError(f"{where}: the base '{base}' builds on this recipe itself.")
    if not base_path.is_file():
        raise UserError(f"{where}: the base '{base}' does not exist; it is looked for at '{base_path}'.")
    merged, base_origins = _read_with_base(base_path, chain)
    _merge(merged, mapping)
    return merged, base_origins | origins


def _merge(into: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        elif not (value is None and isinstance(into.get(key), dict) and key in _SECTIONS):
            into[key] = value


# A section header with nothing under it changes nothing; `lora: null` inside a section does.
_SECTIONS = {field.name for field in settings_of(Recipe)}


def _override(mapping: dict[str, Any], origins: Origins, override: str) -> None:
    """Set one `key.sub=value`, the value read as YAML; list items go by their index."""
    key, equals, text = override.partition("=")
    where = f"command line ({override})"
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise UserError(f"{where}: expected key=value, such as rollout.height=256.")
    value, value_origins = parse_yaml(text, where, lines=False)
    at: Any = mapping
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(at, list):
            part = _index(part, at, path[:depth], where)
        elif not isinstance(at, dict):
            raise UserError(f"{where}: {key_of(path[:depth])} is {at!r}, which has no key '{part}' to set.")
        if last:
            at[part] = value
        elif isinstance(at, list):
            at = at[part]
        else:
            if at.get(part) is None:
                at[part] = {}
                origins[path[: depth + 1]] = where
            at = at[part]
    for old in [old for old in origins if old[: len(path)] == path]:
        del origins[old]
    origins.update({path + sub: where for sub in value_origins} | {path: where})


def _index(part: str, items: list, path: tuple[str, ...], where: str) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        valid = f"0 to {len(items) - 1}" if items else "none, it is empty"
        raise UserError(f"{where}: '{part}' is no index of the list {key_of(path)}; valid: {valid}.")
    return int(part)


# Checks --------------------------------------------------------------------------------------------------------------


def _check_rewards(recipe: Recipe, origins: Origins) -> None:
    """The keys that every reward entry shares; the rest is checked by the reward itself."""
    if not recipe.rewards:
        raise UserError(f"{origin_of(('rewards',), origins)}: rewards is empty, expected at least one reward.")
    common = {field.name for field in settings_of(RewardEntry)}
    for section in ("rewards", "eval_rewards"):
        for i, entry in enumerate(getattr(recipe, section)):
            shared = {key: value for key, value in entry.items() if key in common}
            build(RewardEntry, shared, (section, str(i)), origins)


def _check_choices(recipe: Recipe, origins: Origins) -> None:
    """Settings that must agree with each other."""

    def refuse(key: str, sentence: str) -> None:
        raise UserError(f"{origin_of(tuple(key.split('.')), origins)}: {sentence}")

    model, rollout, algorithm = recipe.model, recipe.rollout, recipe.algorithm
    if (model.path is None) == (model.preset is None):
        found = "neither is given" if model.path is None else f"found path {model.path!r} and preset {model.preset!r}"
        refuse("model", f"model needs exactly one of path and preset; {found}. Set the other one to null.")
    if model.lora is not None and model.lora.dropout != 0:
        refuse(
            "model.lora.dropout", f"model.lora.dropout is {model.lora.dropout:g}, expected 0: dropout is always off."
        )
    if algorithm.kl_control is not None and algorithm.beta == 0:
        refuse("algorithm.kl_control", "algorithm.kl_control steers algorithm.beta, which is 0; start it above 0.")
    if algorithm.reference_refresh is not None and algorithm.beta == 0:
        refuse(
            "algorithm.reference_refresh",
            "algorithm.reference_refresh has no reference to refresh, as algorithm.beta is 0; set it above 0.",
        )
    if model.lora is not None and algorithm.reference_refresh is not None and algorithm.reference_refresh.mix != 1:
        refuse(
            "algorithm.reference_refresh.mix",
            f"algorithm.reference_refresh.mix is {algorithm.reference_refresh.mix:g}, and model.lora needs 1: the "
            "product of mixed adapter factors is not a mix of the weights.",
        )
    if recipe.watch.kl_limit is not None and algorithm.beta == 0:
        refuse("watch.kl_limit", "watch.kl_limit needs a reference to measure from; algorithm.beta is 0.")
    if recipe.evaluate.early_stop is not None and (recipe.evaluate.prompts is None or recipe.evaluate.every is None):
        refuse(
            "evaluate.early_stop",
            "evaluate.early_stop looks at evaluations during training; set evaluate.prompts and evaluate.every.",
        )
    if recipe.evaluate.ema and model.ema is None:
        refuse("evaluate.ema", "evaluate.ema is true, but there is no average to evaluate; set model.ema, such as {}.")
    if rollout.guidance == "none" and rollout.guidance_scale != 1:
        refuse(
            "rollout.guidance_scale",
            f"rollout.guidance_scale is {rollout.guidance_scale:g} with rollout.guidance none, which needs 1; "
            "for guidance set rollout.guidance to guided, guided_detach or conditional.",
        )
    if rollout.guidance != "none" and rollout.guidance_scale == 1:
        refuse(
            "rollout.guidance_scale",
            f"rollout.guidance_scale is 1 with rollout.guidance {rollout.guidance}, which needs a scale above 1; "
            "without guidance set rollout.guidance to none.",
        )
    if recipe.understanding.kl_beta > 0 and recipe.understanding.kl_questions is None:
        refuse(
            "understanding.kl_beta",
            f"understanding.kl_beta is {recipe.understanding.kl_beta:g}, and understanding.kl_questions is null; name "
            "the questions whose answers are to be held, or set kl_beta to 0.",
        )
    found = misfit(algorithm.loss, algorithm.level, algorithm.epsilon, algorithm.epsilon_high, algorithm.delta)
    if found:
        refuse(f"algorithm.{found[0]}", found[1])


def _check_rollout_boundaries(recipe: Recipe, origins: Origins) -> None:
    """Updates divide a rollout evenly, and checkpoints fall between two rollouts: TRL saves neither its step counter
    nor its buffer of samples, so a run could not go on from the middle of one."""
    accumulation, micro_steps = _accumulation(recipe), _steps_per_generation(recipe) * recipe.algorithm.num_iterations
    served = (
        f"{micro_steps} (trainer.steps_per_generation {_steps_per_generation(recipe)} "
        f"× algorithm.num_iterations {recipe.algorithm.num_iterations})"
    )
    if micro_steps % accumulation and accumulation % micro_steps:
        where = origin_of(("trainer", "steps_per_generation"), origins)
        raise UserError(
            f"{where}: the micro-batches trained on a rollout, {served}, and trainer.gradient_accumulation_steps "
            f"{accumulation} do not divide each other; nearest valid trainer.steps_per_generation: "
            f"{_nearest(_steps_per_generation(recipe), accumulation)}."
        )
    trainer = recipe.trainer
    if trainer.get("save_strategy", "steps") == "no":
        return
    updates = max(1, micro_steps // accumulation)
    last = trainer.get("max_steps", -1)
    for key in ("save_steps", "max_steps"):
        if key == "save_steps" and key not in trainer and 0 < last < 500:
            continue  # TRL's default of 500 is never reached
        steps = trainer.get(key, 500 if key == "save_steps" else -1)
        where = origin_of(("trainer", key), origins)
        if steps != int(steps) or (key == "save_steps" and steps < 1):
            raise UserError(f"{where}: trainer.{key} is {steps:g}, expected a whole number of updates ≥ 1.")
        if steps > 0 and steps % updates:
            note = "" if key in trainer else " (its default)"
            raise UserError(
                f"{where}: trainer.{key} is {steps:g}{note}, but checkpoints must fall between rollouts, each of which "
                f"serves {updates} updates; nearest valid: {_nearest(int(steps), updates)}."
            )


def check_batches(recipe: Recipe, world_size: int, prompt_count: int | None = None) -> int:
    """How many prompts a rollout takes over all processes.

    A rollout is trainer.per_device_train_batch_size × world_size × steps_per_generation samples, in whole groups.
    prompt_count: the prompts there are; fewer than a rollout takes would give an epoch without a single update.
    Raises UserError with the numbers and the nearest valid ones.
    """
    per_device = recipe.trainer.get("per_device_train_batch_size", 8)
    steps, group = _steps_per_generation(recipe), recipe.rollout.samples_per_prompt
    samples = samples_per_process(recipe) * world_size
    name = "steps_per_generation" if recipe.trainer.get("steps_per_generation") else "gradient_accumulation_steps"
    product = (
        f"{samples} samples of a rollout (trainer.per_device_train_batch_size {per_device} × {world_size} "
        f"process{'es' * (world_size != 1)} × trainer.{name} {steps})"
    )
    if samples % group:
        divisors = [n for n in range(2, samples + 1) if samples % n == 0]
        groups = [n for n in divisors if n < group][-1:] + [n for n in divisors if n > group][:1]
        choices = [f"rollout.samples_per_prompt {' or '.join(map(str, groups))}"] if groups else []
        choices.append(f"trainer.{name} {_nearest(steps, group // math.gcd(per_device * world_size, group))}")
        raise UserError(
            f"{recipe.source}: rollout.samples_per_prompt {group} does not divide the {product}; "
            f"nearest valid: {', or '.join(choices)}."
        )
    prompts = samples // group
    if prompt_count is not None and prompt_count < prompts:
        raise UserError(
            f"{recipe.source}: data.prompts '{recipe.data.prompts}' has {prompt_count} prompts, fewer than the "
            f"{prompts} that a rollout takes: the {product} / rollout.samples_per_prompt {group}; give more prompts or "
            "a smaller batch."
        )
    return prompts


def refresh_risk(recipe: Recipe) -> str | None:
    """A sentence for a reference in bfloat16 that cannot follow the policy; None where there is none."""
    refresh = recipe.algorithm.reference_refresh
    if refresh is None or refresh.mix > 0.5 or recipe.model.dtype != "bfloat16":
        return None
    return (
        f"{recipe.source}: algorithm.reference_refresh.mix {refresh.mix:g} with model.dtype bfloat16: where reference "
        "and policy are one step of bfloat16 apart, as most weights that differ are, half of the way and less is "
        "rounded back; set mix above 0.5, or model.dtype: float32 and trainer.bf16: true."
    )


def rounding_risk(recipe: Recipe) -> str | None:
    """A sentence for a recipe whose weights are too coarse to be trained; None where nothing is wrong with them.

    Half of the spacing of bfloat16 is 0.2 to 0.4 % of a number, and a usual update is smaller.
    """
    if recipe.model.dtype != "bfloat16" or recipe.model.lora is not None or recipe.trainer.get("deepspeed"):
        return None
    return (
        f"{recipe.source}: model.dtype bfloat16 without DeepSpeed keeps no float32 copy of the weights, so an update "
        "below about 0.3 % of a weight is rounded away and most of the model learns nothing; train under ZeRO "
        "(trainer.deepspeed: configs/deepspeed/zero2.json), or set model.dtype: float32 and trainer.bf16: true."
    )


def _nearest(value: int, multiple: int) -> str:
    """The nearest positive multiples below and above a value that is none."""
    below = value // multiple * multiple
    return f"{below} or {below + multiple}" if below else str(multiple)


def _accumulation(recipe: Recipe) -> int:
    return recipe.trainer.get("gradient_accumulation_steps", 1)


def samples_per_process(recipe: Recipe) -> int:
    """Samples of a rollout that each process draws, which need not be whole groups."""
    return recipe.trainer.get("per_device_train_batch_size", 8) * _steps_per_generation(recipe)


def _steps_per_generation(recipe: Recipe) -> int:
    """Micro-batches a rollout, in TRL's words; its default is one update's."""
    return recipe.trainer.get("steps_per_generation") or _accumulation(recipe)
