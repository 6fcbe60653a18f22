"""What a run is about to do, in a line each: for the head of its console."""

import os

from rl.config.checkpointing import AUTO, asked
from rl.config.sections import Recipe
from rl.plan.estimate import GIB, Plan
from rl.plan.own_run import UNKNOWN, gpu_here


def summary(recipe: Recipe, plan: Plan | None, processes: int) -> dict[str, str]:
    """Label → line: model, devices, and of the plan the batch and computed memory."""
    gpu = gpu_here()
    found = {"model": str(recipe.model.path or f"preset {recipe.model.preset}")}
    each = f"{os.cpu_count()} CPU cores" if gpu is None else f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB each"
    found["devices"] = f"{processes} process{'es' * (processes > 1)} on {each}"
    auto = asked(recipe.trainer) == AUTO
    if plan is None:
        return {**found, "activations": f"kept in no layer ({UNKNOWN})"} if auto else found
    trained, policy, decoder = (millions(plan.parameters[part]) for part in ("trained", "policy", "decoder"))
    found["model"] += f": {trained} of {policy} parameters trained, decoder {decoder}"
    return {**found, "update": _batch(plan), "memory": _memory(plan, of_gpu=gpu is not None, auto=auto)}


def millions(number: int) -> str:
    """A number of parameters in words: 3.50M, 8.19B."""
    return f"{number / 1e9:.2f}B" if number >= 1e9 else f"{number / 1e6:.2f}M"


def _batch(plan: Plan) -> str:
    batch = f"{plan.images_an_update} samples"
    if plan.updates_a_rollout > 1:
        return f"{batch}; a rollout of {plan.images_a_rollout} serves {plan.updates_a_rollout} updates"
    return f"{batch} of {plan.prompts_a_rollout} prompt{'s' * (plan.prompts_a_rollout > 1)}"


def _memory(plan: Plan, *, of_gpu: bool, auto: bool) -> str:
    each = f"of {plan.usable / GIB:.1f} GiB per GPU" if of_gpu else "GiB per process"
    left_out = f"; not counted: {', '.join(plan.not_counted)}" if plan.not_counted else ""
    kept = f", activations {plan.kept}" if auto or plan.kept_layers else ""
    return f"{plan.most / GIB:.1f} {each} at its peak ({plan.peak_phase}), computed{kept}{left_out}"
