"""What the rollout engine holds at once: keys and values, and its other buffers, of a rollout or an evaluation."""

from collections.abc import Sequence

from torch import nn

from rl.config.sections import Recipe
from rl.evaluation.evaluate import samples_at_once
from rl.plan.model_states import Part
from rl.plan.simulation import turns_of
from rl.policy.loading import base_model
from uniar.engine.memory import batch_bytes, sample_bytes, text_bytes
from uniar.processing import check_size


def cache_bytes(model: nn.Module, slots: int) -> int:
    """Keys and values of one row of the rollout engine with so many positions, in every layer."""
    text = model.config.text_config
    layers = text.num_hidden_layers + len(model.visual_decoder_layers)
    return 2 * layers * text.num_key_value_heads * text.head_dim * slots * model.dtype.itemsize


def cache_parts(
    recipe: Recipe, policy: nn.Module, samples: int, group: int, prefix: int, tokens: int, guided: bool, phase: str
) -> list[Part]:
    """Keys and values of the samples that the engine draws at once, in groups of a prompt each, and its other buffers,
    as it counts them itself."""
    model, branches = base_model(policy), 2 if guided else 1
    at_once = _at_once(recipe, sample_bytes(model, prefix, tokens, branches), samples)
    caches = at_once * branches * cache_bytes(model, prefix + tokens)
    return _cache_parts(caches, batch_bytes(model, prefix, tokens, branches, at_once, -(-at_once // group)), phase)


def text_cache_parts(recipe: Recipe, policy: nn.Module, samples: int, prefix: int, phase: str) -> list[Part]:
    """The same of texts, each behind a conversation of its own."""
    model, tokens = base_model(policy), recipe.rollout.max_new_tokens
    at_once = _at_once(recipe, text_bytes(model, prefix, tokens, 1, 1), samples)
    text = model.config.text_config
    caches = at_once * 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * model.dtype.itemsize
    return _cache_parts(caches * (prefix + tokens), text_bytes(model, prefix, tokens, at_once, at_once), phase)


def _at_once(recipe: Recipe, sample: int, samples: int) -> int:
    """How many of so many samples, of `sample` bytes each, the memory budget lets the engine make at once."""
    budget = recipe.rollout.memory_budget_gb
    return samples if budget is None else max(1, min(samples, int(budget * 1e9) // sample))


def _cache_parts(caches: int, held: int, phase: str) -> list[Part]:
    where = "" if phase == "rollout" else " of evaluations"
    return [
        Part(f"KV caches{where}", caches, frozenset({phase})),
        Part(f"engine buffers{where}", held - caches, frozenset({phase})),
    ]


def largest(found: Sequence[list[Part]]) -> list[Part]:
    """Of what is held in turns."""
    return max(found, key=lambda parts: (sum(part.bytes for part in parts), parts[0].bytes))


def evaluation_caches(recipe: Recipe, policy: nn.Module, prefix: int, unit: int) -> list[Part]:
    """Of a recipe's held-out prompts."""
    held, drawn = recipe.evaluate, recipe.rollout
    check_size(drawn.height, drawn.width, unit, "evaluate.sets: ")
    samples = samples_at_once(held.samples_per_prompt, recipe.decode.batch_size)
    tokens = (drawn.height // unit) * (drawn.width // unit)
    guided, turns, found = held.guidance_scale != 1, turns_of(recipe), []
    if pictures := turns["picture"]:
        alike, before = held.samples_per_prompt if pictures == 1 else 1, prefix + (pictures - 1) * tokens
        found.append(cache_parts(recipe, policy, samples, alike, before, tokens, guided, "evaluate"))
    if "text" in turns:
        found.append(text_cache_parts(recipe, policy, samples, prefix + tokens, "evaluate"))
    return largest(found)
