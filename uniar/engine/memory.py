"""The memory that the engine takes, and how many samples fit into it at once."""

from collections.abc import Sequence

import torch

from uniar.drawing_model import DrawingModel
from uniar.engine.layers import layers_of
from uniar.errors import UserError
from uniar.turn_prompt import TurnPrompt


def batch_size(
    model: DrawingModel,
    branches: Sequence[TurnPrompt],
    tokens: int,
    samples: int,
    memory_budget: int | None,
) -> int:
    """How many samples fit the budget at once."""
    if memory_budget is None:
        return samples
    prefix = max(branch.input_ids.shape[1] for branch in branches)
    needed = sample_bytes(model, prefix, tokens, len(branches))
    if needed > memory_budget:
        raise UserError(
            f"one sample's rollout needs {needed / 2**20:.1f} MiB of caches and activations, the memory budget is "
            f"{memory_budget / 2**20:.1f} MiB (rollout.memory_budget_gb of a recipe, --memory-budget-gb); allow "
            "more or draw a smaller image."
        )
    return min(samples, memory_budget // needed)


def sample_bytes(model: DrawingModel, prefix: int, tokens: int, branches: int) -> int:
    """`batch_bytes` of a sample that shares its prompt with no other."""
    return batch_bytes(model, prefix, tokens, branches, 1, 1)


def batch_bytes(model: DrawingModel, prefix: int, tokens: int, branches: int, samples: int, prompts: int) -> int:
    """Bytes that `samples` of so many prompts take in the engine, from above.

    Keys and values of the prefixes, and then either what a layer holds during prefill, or keys and values of all slots,
    the thresholds, bits and gaps, and what a step holds.
    """
    text, vision = model.config.text_config, model.config.vision_config
    size = torch.finfo(model.dtype).bits // 8
    levels, spatial, bsq_dim = vision.code_shape
    bits = levels * spatial * bsq_dim
    slot = 2 * len(layers_of(model)) * text.num_key_value_heads * text.head_dim * size
    position = (4 * text.intermediate_size + (8 + levels) * text.hidden_size) * size
    mask = text.num_attention_heads // text.num_key_value_heads * prefix * (1 + size)
    projection = 2 * vision.bsq_hidden_dim + 6 * vision.hidden_size
    step = position + 2 * bits * (size + 8) + levels * spatial * projection * size
    drawn = tokens * bits * (4 + 1 + 8 + 8 * branches)
    prefill = prompts * prefix * (position + mask)
    stepping = samples * (branches * ((prefix + tokens) * slot + step) + drawn)
    return prompts * branches * prefix * slot + max(prefill, stepping)
