"""The memory that the engine takes, and how many samples fit into it at once."""

from collections.abc import Sequence

import torch
from torch import nn

from uniar.drawing_model import DrawingModel
from uniar.engine.layers import layers_of
from uniar.errors import UserError


def fitting(needed: int, samples: int, memory_budget: int | None, advice: str) -> int:
    """How many of so many samples, of `needed` bytes each, fit the budget at once. Raises UserError where none does."""
    if memory_budget is None:
        return samples
    if needed > memory_budget:
        raise UserError(
            f"one sample's rollout needs {needed / 2**20:.1f} MiB of caches and activations, the memory budget is "
            f"{memory_budget / 2**20:.1f} MiB (rollout.memory_budget_gb of a recipe, --memory-budget-gb); allow "
            f"more or {advice}."
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
    vision, size = model.config.vision_config, _element(model)
    levels, spatial, bsq_dim = vision.code_shape
    bits = levels * spatial * bsq_dim
    slot, position = _slot(model, layers_of(model)), _position(model)
    projection = 2 * vision.bsq_hidden_dim + 6 * vision.hidden_size
    step = position + 2 * bits * (size + 8) + levels * spatial * projection * size
    drawn = tokens * bits * (4 + 1 + 8 + 8 * branches)
    prefill = prompts * prefix * (position + _mask(model, prefix))
    stepping = samples * (branches * ((prefix + tokens) * slot + step) + drawn)
    return prompts * branches * prefix * slot + max(prefill, stepping)


def text_bytes(model: DrawingModel, prefix: int, tokens: int, samples: int, prompts: int) -> int:
    """Bytes that `samples` of so many prompts take while they are written, from above: as `batch_bytes`, with the
    distribution over the vocabulary that a step holds."""
    slot, position = _slot(model, model.model.language_model.layers), _position(model)
    # Logits in the model's precision and in float32 (scaled, weights), sums in float64 and what they are made of.
    step = position + model.config.text_config.vocab_size * (_element(model) + 4 * 3 + 8 * 2)
    prefill = prompts * prefix * (position + _mask(model, prefix))
    stepping = samples * ((prefix + tokens) * slot + step + tokens * (8 + 8 + 4))
    return prompts * prefix * slot + max(prefill, stepping)


def _element(model: DrawingModel) -> int:
    return torch.finfo(model.dtype).bits // 8


def _slot(model: DrawingModel, layers: Sequence[nn.Module]) -> int:
    """Keys and values of a position in all `layers`."""
    text = model.config.text_config
    return 2 * len(layers) * text.num_key_value_heads * text.head_dim * _element(model)


def _position(model: DrawingModel) -> int:
    """What a layer holds of a position, embeddings of all levels included."""
    text = model.config.text_config
    levels, _, _ = model.config.vision_config.code_shape
    return (4 * text.intermediate_size + (8 + levels) * text.hidden_size) * _element(model)


def _mask(model: DrawingModel, prefix: int) -> int:
    """What a position of a prefix may see: a row of the mask, for each query head of a key head."""
    text = model.config.text_config
    return text.num_attention_heads // text.num_key_value_heads * prefix * (1 + _element(model))
