"""Named held-out sets, `evaluate.sets`: each is evaluated as the recipe would be with the set's values in place."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rewards.contract.spec import RewardSpec
from rl.config.held_out_set import EvaluationSetSection
from rl.config.sections import Recipe

_PLACES = {
    **{name: ("evaluate", name) for name in ("prompts", "limit", "samples_per_prompt", "temperature")},
    **{name: ("evaluate", name) for name in ("guidance_scale", "num_inference_steps", "text_temperature")},
    **{name: ("rollout", name) for name in ("height", "width", "episodes")},
    "upsampling_ratio": ("decode", "upsampling_ratio"),
    "rewards": ("eval_rewards",),
}
"""where a recipe has what a set has"""


def sets_of(recipe: Recipe) -> Mapping[str | None, Recipe]:
    """The name of each held-out set → the recipe with the set's values in their places, which evaluates it alone.
    Without `evaluate.sets` the recipe itself, under None."""
    if not recipe.evaluate.sets:
        return {None: recipe}
    return {name: _recipe_of(recipe, name, section) for name, section in recipe.evaluate.sets.items()}


def _recipe_of(recipe: Recipe, name: str, section: EvaluationSetSection) -> Recipe:
    origins = dict(recipe.origins)
    changed: dict[str, Any] = {"evaluate": {"sets": {}}}
    for key, (*within, place) in _PLACES.items():
        value = getattr(section, key)
        if key == "limit":  # to look at a few of each set, one override is enough
            value = min((limit for limit in (value, recipe.evaluate.limit) if limit is not None), default=None)
        if value is None:
            continue
        (changed.setdefault(within[0], {}) if within else changed)[place] = value
        written = ("evaluate", "sets", name, key)
        for old in [old for old in recipe.origins if old[: len(written)] == written]:
            origins[(*within, place, *old[len(written) :])] = recipe.origins[old]
    if section.height is not None or section.width is not None:
        changed.setdefault("rollout", {})["sizes"] = []
    sections = {
        key: dataclasses.replace(getattr(recipe, key), **value) if isinstance(value, dict) else value
        for key, value in changed.items()
    }
    return dataclasses.replace(recipe, origins=origins, **sections)


def trained_rewards(recipe: Recipe) -> set[str]:
    """Names of the rewards of a held-out set that training is rewarded by too: with the same settings, and a weight.
    recipe: the set's own, of `sets_of`."""
    paid = [RewardSpec.from_mapping(entry) for entry in recipe.rewards if entry.get("weight") != 0]
    measured = [RewardSpec.from_mapping(entry) for entry in recipe.eval_rewards or recipe.rewards]
    same = [(spec.use, spec.params) for spec in paid]
    return {str(spec.name) for spec in measured if (spec.use, spec.params) in same}
