"""Which settings would make a recipe fit: each is tried by planning the recipe with it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rl.config.sections import Recipe
from rl.plan.estimate import Plan
from uniar.errors import UserError


@dataclass(frozen=True)
class Change:
    """Overrides of a recipe (or more GPUs), and the plan with them."""

    overrides: tuple[str, ...]
    plan: Plan
    price: str
    """what else they change"""


Planner = Callable[[Sequence[str], int], tuple[Recipe, Plan]]
"""(further overrides, GPUs) → the recipe with them, and its plan"""


def advise(recipe: Recipe, plan: Plan, planner: Planner) -> list[Change]:
    """Single changes that make the recipe fit; where none does, the shortest row of them that does; else nothing.

    The first ones cost least: they change memory and speed, the last ones the algorithm.
    """
    alone, together = [], ()
    best = plan
    for overrides, price in _changes(recipe, plan):
        changed = _try(planner, overrides, plan.gpus)
        if changed is not None and changed[1].fits:
            alone.append(Change(overrides, changed[1], price))
    for gpus in (2 * plan.gpus, 4 * plan.gpus):
        if not alone or plan.states.zero.stage >= 2:
            changed = _try(planner, (), gpus)
            if changed is not None and changed[1].fits:
                alone.append(Change((f"--gpus {gpus}",), changed[1], f"{gpus // plan.gpus} times the images an update"))
                break
    if alone:
        return alone
    current = recipe
    prices = []
    for _ in range(8):  # each round adds the change that frees most
        tried = [
            (changed, overrides, price)
            for overrides, price in _changes(current, best)
            if (changed := _try(planner, (*together, *overrides), plan.gpus)) is not None
        ]
        if not tried:
            return []
        (current, smaller), overrides, price = min(tried, key=lambda found: found[0][1].most)
        if smaller.most >= best.most:
            return []
        best, together = smaller, (*together, *overrides)
        prices.append(price)
        if best.fits:
            return [Change(together, best, ", ".join(dict.fromkeys(prices)))]
    return []


def _try(planner: Planner, overrides: Sequence[str], gpus: int) -> tuple[Recipe, Plan] | None:
    try:
        return planner(overrides, gpus)
    except UserError:
        return None  # this recipe cannot take the change


def _changes(recipe: Recipe, plan: Plan) -> Iterator[tuple[tuple[str, ...], str]]:
    """(overrides, price) of what could lower the peak, cheapest first."""
    trainer, zero = recipe.trainer, plan.states.zero
    drawing = plan.part("KV caches") + plan.part("engine buffers")
    room = plan.usable - (plan.held("rollout") - drawing)
    if 0 < room < drawing:
        yield (f"rollout.memory_budget_gb={int(room / 1e8) / 10:g}",), "rollouts in several parts"
    if recipe.decode.batch_size > 1:
        yield (f"decode.batch_size={recipe.decode.batch_size // 4 or 1}",), "slower decoding"
    if not trainer.get("gradient_checkpointing", True):
        yield ("trainer.gradient_checkpointing=true",), "a second forward pass"
    micro = trainer.get("per_device_train_batch_size", 8)
    if micro > 1 and micro % 2 == 0:
        changed = [f"trainer.per_device_train_batch_size={micro // 2}"]
        changed += [
            f"trainer.{key}={2 * trainer[key]}"
            for key in ("gradient_accumulation_steps", "steps_per_generation")
            if trainer.get(key)
        ]
        if "gradient_accumulation_steps" not in trainer:
            changed.append("trainer.gradient_accumulation_steps=2")
        yield tuple(changed), "smaller micro-batches"
    if plan.states.has_reference and recipe.model.reference_device == "gpu" and zero.stage != 3:
        yield ("model.reference_device=cpu",), "a copy of the reference each rollout"
    if plan.movable_rewards:
        yield tuple(f"{key}.offload=true" for key in plan.movable_rewards), "a copy of reward models each rollout"
    if plan.states.average == "gpu":
        yield ("model.ema.device=cpu",), "the average is moved on the CPU"
    if recipe.decode.device == "gpu" and recipe.decode.dtype is None and recipe.model.dtype == "float32":
        yield ("decode.dtype=bfloat16",), "other rounding in the decoder"
    if zero.stage < 2 and plan.training_gpus > 1:
        yield ("trainer.deepspeed=configs/deepspeed/zero2.json",), "communication"
    if zero.stage < 3 and plan.training_gpus > 1:
        yield ("trainer.deepspeed=configs/deepspeed/zero3.json",), "more communication"
    if not zero.optimizer_on_cpu:
        yield ("trainer.deepspeed=configs/deepspeed/zero3_offload.json",), "much slower updates, memory of the machine"
    if recipe.model.lora is None:
        yield ("model.lora={r: 16, alpha: 32}",), "adapters are trained, not all weights"
    if recipe.algorithm.beta > 0 and recipe.understanding.kl_beta == 0 and recipe.model.lora is None:
        yield ("algorithm.beta=0",), "no KL term"
