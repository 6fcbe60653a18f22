"""The plan of the run that this process is about to make, on the GPUs that it has."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainingArguments

from rl.config.checkpointing import AUTO, asked, keeping, kept_layers
from rl.config.sections import Recipe
from rl.data.prompts import PromptRecord
from rl.plan.estimate import PREFIX, Plan, make_plan
from rl.plan.planned_model import planned_model
from rl.plan.simulation import Simulation
from uniar.engine.layers import layers_of
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.reading.files import reason_of

logger = logging.getLogger(__name__)

LONGEST = 256
"""prompts of the most characters that are looked at"""
TEMPLATE = 32
"""tokens at most that the chat template and the request for a picture put around a prompt"""


def gpu_here() -> Any:
    """What torch says of the first GPU; None without one."""
    return torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None


def own_plan(
    recipe: Recipe, source: Path, processes: int, records: Sequence[PromptRecord], tokenizer: Any
) -> Plan | None:
    """None, with a warning, where it can't be made. source: the checkpoint's folder. processes: of all machines, those
    that only decode included. Call it before anything is loaded, which ZeRO-3 would shard.

    Without a GPU `auto` keeps all activations. With pictures to edit it keeps none, as any may be of any size.
    """
    gpu = gpu_here()
    if asked(recipe.trainer) == AUTO and gpu is not None and any(record.image is not None for record in records):
        recipe = keeping(recipe, 0)
    longest = sorted((record.prompt for record in records), key=len)[-LONGEST:]
    memory = gpu.total_memory if gpu is not None else 2**60
    try:
        tokens = max(len(ids) for ids in tokenizer(longest)["input_ids"])
        prefix = max(PREFIX, -(-(tokens + TEMPLATE) // 32) * 32)
        model = planned_model(dataclasses.replace(recipe.model, path=str(source), preset=None))
        return make_plan(recipe, Simulation(model), processes, memory, prefix)
    except Exception as error:  # a run does not depend on what is computed of it
        logger.warning("what the run needs could not be computed: %s.", reason_of(error))
        return None


def keep_layers(
    recipe: Recipe, plan: Plan | None, model: UniARForConditionalGeneration, args: TrainingArguments
) -> None:
    """Tells the model of how many layers activations are kept, in all processes as the first one's plan says: under
    ZeRO-3 they gather a layer's weights together each time that it is computed."""
    layers = len(layers_of(model))
    told = [kept_layers(recipe.trainer, layers) if plan is None else plan.kept_layers]
    model.kept_layers = broadcast_object_list(told)[0]
    if model.kept_layers == layers:
        args.gradient_checkpointing = args.activation_checkpointing = False
