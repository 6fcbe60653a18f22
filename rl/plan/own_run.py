"""The plan of the run that this process is about to make, on the GPUs that it has."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from transformers import TrainingArguments

from rl.config.checkpointing import AUTO, asked, keeping, kept_layers
from rl.config.sections import Recipe
from rl.data.prompts import PromptRecord
from rl.distributed.engine import unsharded
from rl.distributed.setup import is_first_process, local_device
from rl.plan.estimate import PREFIX, Plan, make_plan
from rl.plan.planned_model import planned_model
from rl.plan.simulation import Simulation
from uniar.engine.layers import layers_of
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.reading.files import reason_of

logger = logging.getLogger(__name__)

BATCH = 1024
"""prompts that are tokenized at once"""
TEMPLATE = 32
"""tokens at most that the chat template and the request for a picture put around a prompt"""
CONTEXT = 2**29
"""bytes that a process's CUDA context is taken to hold"""
ENDLESS = 2**60
"""bytes: on a CPU nothing is computed again for lack of memory"""
UNKNOWN = "what the run needs could not be computed"


def gpu_here() -> Any:
    """What torch says of this process's GPU; None without one."""
    device = local_device()
    return torch.cuda.get_device_properties(device) if device.type == "cuda" else None


def memory_here() -> int:
    """Bytes of this process's device that are free or its own. ENDLESS on a CPU; 0 for a device that is neither CPU
    nor CUDA, as what it has free is not known."""
    device = local_device()
    if device.type != "cuda":
        return ENDLESS if device.type == "cpu" else 0
    free, total = torch.cuda.mem_get_info(device)
    return min(total, free + torch.cuda.memory_reserved(device) + CONTEXT)


def own_plan(
    recipe: Recipe,
    source: Path,
    processes: int,
    records: Sequence[PromptRecord],
    tokenizer: Any,
    memory: int,
    args: TrainingArguments,
    *,
    head: bool = False,
) -> Plan | None:
    """The plan within the least `memory` of all processes, which call it together; for `auto`, and for the head.

    None in all processes but the first, and, with a warning, where it can't be made. source: the checkpoint's folder.
    processes: of all machines, those that only decode included. memory: this process's `memory_here`, from before
    anything was loaded.
    """
    least, auto = min(gather_object([memory])), asked(recipe.trainer) == AUTO
    if not is_first_process() or not (head or auto):
        return None
    if because := _unsure(records, least) if auto else "":
        recipe = keeping(recipe, 0)
    try:
        with unsharded(args):
            model = planned_model(dataclasses.replace(recipe.model, path=str(source), preset=None))
            plan = make_plan(recipe, Simulation(model), processes, least, prefix_of(records, tokenizer))
    except Exception as error:  # a run does not depend on what is computed of it
        logger.warning("%s: %s.", UNKNOWN, reason_of(error))
        return None
    return dataclasses.replace(plan, none_because=because) if because else plan


def _unsure(records: Sequence[PromptRecord], memory: int) -> str:
    """Why a run on these prompts may need more than its plan says, in a few words."""
    if any(record.image is not None for record in records):
        return "pictures of prompts may be of any size"
    if any(record.size is not None for record in records):
        return "prompts name sizes of their own"
    return "" if memory else "what this device has free is not known"


def prefix_of(records: Sequence[PromptRecord], tokenizer: Any) -> int:
    """Positions before the drawn tokens for the prompt of most tokens, in whole steps of 32."""
    prompts = list({record.prompt for record in records})
    batches = [tokenizer(prompts[start : start + BATCH])["input_ids"] for start in range(0, len(prompts), BATCH)]
    tokens = max(len(ids) for batch in batches for ids in batch)
    return max(PREFIX, -(-(tokens + TEMPLATE) // 32) * 32)


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
