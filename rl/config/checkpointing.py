"""`trainer.gradient_checkpointing`: of how many layers activations are kept for the backward pass. Those of the others
are computed again there (arXiv 1604.06174), with the same gradients."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, TypeAlias

from rl.config.sections import Recipe

NAMES = ("activation_checkpointing", "gradient_checkpointing")
"""transformers' new name, which goes before the old one"""
AUTO, KEEP = "auto", "keep_layers"

Asked: TypeAlias = bool | Literal["auto"] | dict[str, Any]
"""What the key may be: `{keep_layers: N}` keeps the activations of the last N layers, the visual decoder's included."""


def asked(trainer: Mapping[str, Any]) -> Asked:
    """By the arguments of `trainer`, under either name."""
    return next((trainer[name] for name in NAMES if trainer.get(name) is not None), True)


def what_is_wrong(value: Asked) -> str | None:
    """The end of a sentence about a mapping that is none; its beginning names the key."""
    if not isinstance(value, dict):
        return None
    kept = value.get(KEEP)
    if list(value) == [KEEP] and type(kept) is int and kept >= 0:
        return None
    return f"is {value}, expected true, false, {AUTO} or {{{KEEP}: N}}, N a whole number ≥ 0"


def kept_layers(trainer: Mapping[str, Any], layers: int) -> int:
    """Of so many layers. `auto` keeps none until a plan has said how many (rl/plan/estimate.py)."""
    value = asked(trainer)
    if isinstance(value, dict):
        return min(value[KEEP], layers)
    return 0 if value else layers


def keeping(recipe: Recipe, layers: int) -> Recipe:
    """The recipe with the activations of so many layers kept."""
    trainer = {name: value for name, value in recipe.trainer.items() if name not in NAMES}
    return replace(recipe, trainer={**trainer, NAMES[1]: {KEEP: layers}})
