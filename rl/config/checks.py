"""Settings of a recipe that must agree with each other, with the number of processes and with that of the prompts."""

import math
import re
from collections.abc import Callable

from rewards.contract.spec import RewardSpec
from rl.algorithm.guidance import CONVENTIONS
from rl.algorithm.losses.settings import ConflictingSetting
from rl.config.sections import Recipe
from uniar.errors import UserError
from uniar.reading.settings import Origins, checked_values, key_of, origin_of


def check_rewards(recipe: Recipe, origins: Origins) -> None:
    """The keys that every reward entry shares; the rest is checked by the reward itself."""
    if not recipe.rewards and recipe.distill is None:
        raise UserError(f"{origin_of(('rewards',), origins)}: rewards is empty, expected at least one reward.")
    lists = [(("rewards",), recipe.rewards), (("eval_rewards",), recipe.eval_rewards)]
    lists += [(("evaluate", "sets", name, "rewards"), one.rewards or []) for name, one in recipe.evaluate.sets.items()]
    for path, entries in lists:
        for i, entry in enumerate(entries):
            if path[0] == "evaluate" and not isinstance(entry, dict):
                raise UserError(f"{origin_of(path, origins)}: {key_of(path)} has {entry!r}; expected mappings.")
            checked_values(RewardSpec, entry, (*path, str(i)), origins)


def check_choices(recipe: Recipe, origins: Origins) -> None:
    """Settings that must agree with each other."""

    def refuse(key: str, sentence: str) -> None:
        raise UserError(f"{origin_of(tuple(key.split('.')), origins)}: {sentence}")

    model, rollout, algorithm = recipe.model, recipe.rollout, recipe.algorithm
    if model.path is not None and model.path.startswith("preset:"):
        name = model.path.removeprefix("preset:")
        refuse("model.path", f"model.path is {model.path!r}; set model.preset to {name!r} and model.path to null.")
    if (model.path is None) == (model.preset is None):
        found = "neither is given" if model.path is None else f"found path {model.path!r} and preset {model.preset!r}"
        refuse("model", f"model needs exactly one of path and preset; {found}. Set the other one to null.")
    if model.lora is not None and model.lora.target_modules == []:
        refuse(
            "model.lora.target_modules",
            "model.lora.target_modules is empty, which trains nothing; null: the projections of the text layers and of "
            "the visual decoder.",
        )
    if algorithm.kl_control is not None and algorithm.beta == 0:
        refuse("algorithm.kl_control", "algorithm.kl_control steers algorithm.beta, which is 0; start it above 0.")
    if algorithm.reference_refresh is not None and not algorithm.has_kl_term:
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
    if recipe.watch.kl_limit is not None and not algorithm.has_kl_term:
        refuse("watch.kl_limit", "watch.kl_limit needs a reference to measure from; algorithm.beta is 0.")
    guards = recipe.watch.guards
    if guards is not None and recipe.records.picture_size == 0:
        limits = [name for name in ("diversity", "sharpness", "near_duplicates") if getattr(guards, name) is not None]
        if limits:
            refuse(
                "watch.guards",
                f"watch.guards.{limits[0]} is measured on the pictures that are kept, and records.picture_size is 0; "
                f"set {' and '.join(limits)} to null, or records.picture_size above 0.",
            )
    for name, one in recipe.evaluate.sets.items():
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            refuse("evaluate.sets", f"evaluate.sets has a set {name!r}; letters, digits, '_', '-' and '.' are allowed.")
        if one.prompts is None and recipe.evaluate.prompts is None:
            refuse(f"evaluate.sets.{name}", f"evaluate.sets.{name} has no prompts, and evaluate.prompts is null.")
    held_out = recipe.evaluate.prompts is not None or recipe.evaluate.sets
    if recipe.evaluate.early_stop is not None and (not held_out or recipe.evaluate.every is None):
        refuse(
            "evaluate.early_stop",
            "evaluate.early_stop looks at evaluations during training; set evaluate.prompts and evaluate.every.",
        )
    if recipe.distill is not None:
        _check_distillation(recipe, refuse)
    if recipe.evaluate.ema and model.ema is None:
        refuse("evaluate.ema", "evaluate.ema is true, but there is no average to evaluate; set model.ema, such as {}.")
    guided = [convention.name for convention in CONVENTIONS.values() if convention.draws_unconditional]
    if rollout.guidance not in guided and rollout.guidance_scale != 1:
        and_credit = "" if algorithm.credit is None else " and algorithm.credit to null"
        refuse(
            "rollout.guidance_scale",
            f"rollout.guidance_scale is {rollout.guidance_scale:g} with rollout.guidance {rollout.guidance}, which "
            f"needs 1; set rollout.guidance_scale to 1{and_credit}, or for guidance set rollout.guidance to "
            f"{', '.join(guided[:-1])} or {guided[-1]}.",
        )
    if rollout.guidance in guided and rollout.guidance_scale == 1:
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
    try:
        _ = algorithm.text_loss_settings  # and with them those of bits
    except ConflictingSetting as error:
        refuse(f"algorithm.{error.key}", str(error))
    if algorithm.credit is not None and rollout.guidance not in guided:
        refuse(
            "algorithm.credit",
            f"algorithm.credit is {algorithm.credit}, which compares bits drawn with and without the prompt, and "
            f"rollout.guidance is {rollout.guidance}; set algorithm.credit to null, or rollout.guidance to "
            f"{', '.join(guided[:-1])} or {guided[-1]}.",
        )
    if algorithm.credit is not None and (level := algorithm.loss_settings.level) != "bit":
        refuse(
            "algorithm.credit",
            f"algorithm.credit is {algorithm.credit}, which needs a ratio of its own for each bit, and "
            f"algorithm.ratio_level is {level} with algorithm.loss {algorithm.loss}; set algorithm.credit to null, or "
            "algorithm.ratio_level to bit with a loss that has it.",
        )
    if algorithm.reference_refresh is not None and recipe.reference_draws_otherwise:
        refuse(
            "algorithm.reference_refresh",
            "algorithm.reference_refresh is set, and algorithm.reference has a guidance scale or a temperature of its "
            "own: each refresh would guide and sharpen what the last one did already; set one of the two to null.",
        )
    for key in ("guidance_scale", "temperature"):
        if getattr(algorithm.reference, key) is not None and not algorithm.beta:
            refuse(
                f"algorithm.reference.{key}",
                f"algorithm.reference.{key} is {getattr(algorithm.reference, key):g}, and algorithm.beta is 0: nothing "
                f"measures pictures from a reference; set algorithm.reference.{key} to null, or algorithm.beta above "
                "0.",
            )


def _check_distillation(recipe: Recipe, refuse: Callable[[str, str], None]) -> None:
    """What cannot go with `distill`."""
    assert recipe.distill is not None
    if not recipe.distill.experts:
        refuse("distill.experts", "distill.experts is empty, expected at least one, such as {default: {path: FOLDER}}.")
    for key, section in {
        "rollout.dynamic_sampling": recipe.rollout.dynamic_sampling,
        "algorithm.kl_control": recipe.algorithm.kl_control,
        "algorithm.reference_refresh": recipe.algorithm.reference_refresh,
        "watch.no_variance_steps": recipe.watch.no_variance_steps,
    }.items():
        if section is not None:
            refuse(key, f"{key} is set, and distill, which has no rewards and no reference, needs null.")
    sets = recipe.evaluate.sets.values()
    drawn = any(not one.rewards for one in sets) if sets else recipe.evaluate.prompts is not None
    if drawn and not recipe.eval_rewards:
        refuse("eval_rewards", "eval_rewards is empty, and evaluations need one; distill only trains without rewards.")


def check_rollout_boundaries(recipe: Recipe, origins: Origins) -> None:
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
    if recipe.algorithm.num_iterations > 1 and accumulation > _steps_per_generation(recipe):
        raise UserError(
            f"{origin_of(('algorithm', 'num_iterations'), origins)}: algorithm.num_iterations is "
            f"{recipe.algorithm.num_iterations}, but trainer.gradient_accumulation_steps {accumulation} puts several "
            f"passes over a rollout of trainer.steps_per_generation {_steps_per_generation(recipe)} into one update, "
            "which then repeats itself; set them equal, or num_iterations to 1."
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
            f"{recipe.where('rollout.samples_per_prompt')}: rollout.samples_per_prompt {group} does not divide the "
            f"{product}; nearest valid: {', or '.join(choices)}."
        )
    prompts = samples // group
    if prompt_count is not None and prompt_count < prompts:
        there = f"data.prompts '{recipe.data.prompts}' has {prompt_count} prompt{'s' * (prompt_count != 1)}"
        raise UserError(
            f"{recipe.where('data.prompts')}: {there}, fewer than the {prompts} that a rollout takes: the {product} / "
            f"rollout.samples_per_prompt {group}; give more prompts or a smaller batch."
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


def takes_whole_rollouts(recipe: Recipe) -> bool:
    """Whether an update takes all samples of a rollout, not a share of them by chance."""
    return _steps_per_generation(recipe) == _accumulation(recipe)


def _steps_per_generation(recipe: Recipe) -> int:
    """Micro-batches a rollout, in TRL's words; its default is one update's."""
    return recipe.trainer.get("steps_per_generation") or _accumulation(recipe)
