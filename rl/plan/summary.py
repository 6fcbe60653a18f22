"""What a run is about to do, in a line each: for the head of its console."""

import dataclasses
import logging
import os
from pathlib import Path

import torch

from rl.config.sections import Recipe
from rl.plan.estimate import GIB, Plan, make_plan
from rl.plan.planned_model import planned_model
from rl.plan.simulation import Simulation
from uniar.reading.files import reason_of

logger = logging.getLogger(__name__)


def summary(recipe: Recipe, source: Path, processes: int) -> dict[str, str]:
    """Label → line: model, devices, batch and computed memory. source: the checkpoint's folder. processes: of all
    machines, those that only decode included. Call it before anything is loaded, which ZeRO-3 would shard."""
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    found = {"model": str(recipe.model.path or f"preset {recipe.model.preset}")}
    each = f"{os.cpu_count()} CPU cores" if gpu is None else f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB each"
    found["devices"] = f"{processes} process{'es' * (processes > 1)} on {each}"
    try:
        model = planned_model(dataclasses.replace(recipe.model, path=str(source), preset=None))
        memory = gpu.total_memory if gpu is not None else 80 * GIB  # of a CPU no share is kept, so any number serves
        plan = make_plan(recipe, Simulation(model), processes, memory)
    except Exception as error:  # a run does not depend on what is computed of it
        logger.warning("what the run needs could not be computed: %s.", reason_of(error))
        return found
    trained, policy, decoder = (millions(plan.parameters[part]) for part in ("trained", "policy", "decoder"))
    found["model"] += f": {trained} of {policy} parameters trained, decoder {decoder}"
    return {**found, "update": _batch(plan), "memory": _memory(plan, of_gpu=gpu is not None)}


def millions(number: int) -> str:
    """A number of parameters in words: 3.50M, 8.19B."""
    return f"{number / 1e9:.2f}B" if number >= 1e9 else f"{number / 1e6:.2f}M"


def _batch(plan: Plan) -> str:
    batch = f"{plan.images_an_update} samples"
    if plan.updates_a_rollout > 1:
        return f"{batch}; a rollout of {plan.images_a_rollout} serves {plan.updates_a_rollout} updates"
    return f"{batch} of {plan.prompts_a_rollout} prompt{'s' * (plan.prompts_a_rollout > 1)}"


def _memory(plan: Plan, *, of_gpu: bool) -> str:
    each = f"of {plan.usable / GIB:.1f} GiB per GPU" if of_gpu else "GiB per process"
    left_out = f"; not counted: {', '.join(plan.not_counted)}" if plan.not_counted else ""
    return f"{plan.most / GIB:.1f} {each} at its peak ({plan.peak_phase}), computed{left_out}"
