"""From a YAML file and command-line overrides to a checked `Recipe`."""

import copy
import dataclasses
import difflib
import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rl.algorithm.losses import loss_named
from rl.config.checks import check_choices, check_rewards, check_rollout_boundaries
from rl.config.habits import HABITS
from rl.config.held_out_set import EvaluationSetSection
from rl.config.precision import with_precision
from rl.config.sections import Recipe
from rl.config.trainer_arguments import TAKEN, check_trainer_arguments
from uniar.errors import UserError
from uniar.reading.files import user_path
from uniar.reading.plugins import current_name, from_current_folder
from uniar.reading.settings import (
    ANY_NAME,
    Origins,
    build,
    home_expanded,
    key_of,
    nested_settings,
    origin_of,
    settings_of,
    shown_value,
)
from uniar.reading.yaml_files import parse_yaml, read_yaml
from uniar.shipped_files import SHIPPED, shipped, shipped_model

_HOME = re.compile(r"~/|\$\{?\w+\}?/")
_RETIRED = {("model", "lora", "dropout"): 0.0}
"""Keys that earlier versions wrote into the config.yaml of every run, and the only value that they could have. With it
they are passed over, so that those runs can be resumed and exported."""


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, merge it over its base, apply `key.sub=value` overrides, fill in defaults and check it all.

    Raises UserError naming the file and line (or the override), what was found and what is valid.
    """
    path = _recipe_file(user_path(path))
    mapping, origins = _read_with_base(path, ())
    for override in overrides:
        _override(mapping, origins, override)
    return recipe_from_mapping(mapping, str(path), origins)


def _recipe_file(path: Path) -> Path:
    """A file here, or one that comes along. Raises UserError for a folder, and a name that is nearly one's."""
    found = path if path.exists() else shipped(str(path)) or path
    if found.is_dir():
        inside = min(found.glob("*.yaml"), default=None)
        raise UserError(f"'{path}' is a folder; name a recipe{f', such as {inside}' if inside else ', a YAML file'}.")
    names = {file.stem: file.name for file in (SHIPPED / "configs").glob("*.yaml")}
    if not found.exists() and (near := difflib.get_close_matches(path.stem, names, n=1)):
        raise UserError(f"The recipe '{path}' does not exist. Did you mean '{names[near[0]]}'?")
    return found


def recipe_from_mapping(mapping: Mapping[str, Any], source: str = "recipe", origins: Origins | None = None) -> Recipe:
    """A checked recipe from plain values, as YAML would give them; `source` names it in messages and, without an
    `output_dir`, gives the run folder its name."""
    origins = origins or {(): source}
    mapping = _without_retired(mapping)
    _locate(mapping, lambda text: None if os.path.exists(text) else shipped(text))
    for path, holder, key in _reward_lists(mapping):  # a bare name is short for {use: name}
        found = holder[key]
        if not isinstance(found, list):
            where, one = origin_of(path, origins), found if isinstance(found, str) else "{use: NAME}"
            raise UserError(
                f"{where}: {key_of(path)} is {shown_value(found)}, expected a list of rewards, such as [{one}]."
            )
        holder[key] = [{"use": item} if isinstance(item, str) else item for item in found]
    recipe = build(Recipe, mapping, (), origins, _names())
    check_rewards(recipe, origins)
    recipe = dataclasses.replace(
        recipe,
        base=None,
        source=source,
        origins=origins,
        trainer=check_trainer_arguments(recipe.trainer, origins),
        algorithm=dataclasses.replace(
            recipe.algorithm, loss=from_current_folder(recipe.algorithm.loss, Path(source).parent)
        ),
        evaluate=dataclasses.replace(
            recipe.evaluate, sets={name: _set(one, name, source, origins) for name, one in recipe.evaluate.sets.items()}
        ),
        rollout=dataclasses.replace(
            recipe.rollout, episodes=_episodes(recipe.rollout.episodes, ("rollout", "episodes"), source, origins)
        ),
        **{key: _with_homes(getattr(recipe, key), (key,), origins) for key in ("rewards", "eval_rewards")},
    )
    recipe = with_precision(dataclasses.replace(recipe, output_dir=recipe.output_dir or recipe.default_folder))
    if recipe.distill is not None:  # rewards are of evaluations alone
        settled = {"rewards": [], "eval_rewards": recipe.eval_rewards or recipe.rewards}
        recipe = dataclasses.replace(recipe, algorithm=recipe.algorithm.of_distillation(), **settled)
    check_choices(recipe, origins)
    check_rollout_boundaries(recipe, origins)
    return recipe


def _reward_lists(mapping: dict[str, Any]) -> list[tuple[tuple[str, ...], dict[str, Any], str]]:
    """The lists of rewards in a recipe as it was read: where each stands, what holds it, and under which key."""
    evaluate = mapping.get("evaluate")
    sets = evaluate.get("sets") if isinstance(evaluate, dict) else None
    places: list[tuple[tuple[str, ...], Any, str]] = [((key,), mapping, key) for key in ("rewards", "eval_rewards")]
    for name, one in sets.items() if isinstance(sets, dict) else ():
        places.append((("evaluate", "sets", str(name), "rewards"), one, "rewards"))
    return [place for place in places if isinstance(place[1], dict) and place[1].get(place[2]) is not None]


def _set(section: EvaluationSetSection, name: str, source: str, origins: Origins) -> EvaluationSetSection:
    place, episodes = ("evaluate", "sets", name), section.episodes
    return dataclasses.replace(
        section,
        rewards=_with_homes(section.rewards, (*place, "rewards"), origins),
        episodes=None if episodes is None else _episodes(episodes, (*place, "episodes"), source, origins),
    )


def _episodes(given: Mapping[str, str], path: tuple[str, ...], source: str, origins: Origins) -> dict[str, str]:
    """With plug-in files named from the current folder. path: of the mapping. Raises UserError for a value that names
    nothing."""
    named = {}
    for task, name in given.items():
        where = (*path, str(task))
        if not isinstance(task, str) or not isinstance(name, str):
            raise UserError(
                f"{origin_of(where, origins)}: {key_of(where)} is {shown_value(name)}, expected the name of an episode "
                "under the name of a task."
            )
        named[task] = from_current_folder(home_expanded(name, where, origins), Path(source).parent)
    return named


def _without_retired(mapping: Mapping[str, Any]) -> dict[str, Any]:
    kept = copy.deepcopy(dict(mapping))
    for (*sections, key), only in _RETIRED.items():
        section: Any = kept
        for name in sections:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict) and section.get(key) == only:
            del section[key]
    return kept


@contextmanager
def blamed_on(recipe: Recipe, key: str) -> Iterator[None]:
    """Puts the key, and where it was written, before what a UserError raised inside says."""
    try:
        yield
    except UserError as error:
        name = "" if str(error).startswith(key) else f"{key}: "
        raise UserError(f"{recipe.where(key)}: {name}{error}") from error


def load_loss(recipe: Recipe) -> None:
    """Loads a loss that is a plug-in; its file is named relative to the recipe. Raises UserError where it
    cannot be called."""
    with blamed_on(recipe, "algorithm.loss"):
        loss_named(recipe.algorithm.loss).load(Path(recipe.source).parent)


@functools.cache
def _names() -> dict[str, str]:
    """The last part of each setting's key, where only one has it, and names by habit -> that key: for hints."""
    keys: dict[str, list[str]] = {name: [f"trainer.{name}"] for name in TAKEN}
    for key, field, _ in nested_settings(Recipe):
        if ANY_NAME not in key.split("."):
            keys.setdefault(field.name, []).append(key)
    return HABITS | {name: found[0] for name, found in keys.items() if len(found) == 1}


def _with_homes(value: Any, path: tuple[str, ...], origins: Origins) -> Any:
    """Reward entries, whose parameters no section describes: a string that begins with `~/` or `$NAME/` is a path,
    and a former name is now another."""
    if isinstance(value, dict):
        return {key: _with_homes(item, (*path, key), origins) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_homes(item, (*path, str(i)), origins) for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    return home_expanded(value, path, origins) if _HOME.match(value) else current_name(value)


# Reading -------------------------------------------------------------------------------------------------------------


def _read_with_base(path: Path, children: tuple[Path, ...]) -> tuple[dict[str, Any], Origins]:
    mapping, origins = read_yaml(path, "recipe")
    if not isinstance(mapping, dict):
        raise UserError(f"{path}: a recipe is a mapping of sections; found {shown_value(mapping)}.")
    _locate(mapping, lambda text: _if_there(path.parent / text))
    base = mapping.pop("base", None)
    if base is None:
        return mapping, origins
    where = origin_of(("base",), origins)
    if not isinstance(base, str):
        raise UserError(f"{where}: base is {base!r}, expected the path of a recipe.")
    base_path = path.parent / home_expanded(base, ("base",), origins)
    base_path = base_path if base_path.exists() else shipped(base) or base_path
    chain = (*children, path.resolve())
    if base_path.resolve() in chain:
        raise UserError(f"{where}: the base '{base}' builds on this recipe itself.")
    if not base_path.is_file():
        raise UserError(f"{where}: the base '{base}' does not exist; it is looked for at '{base_path}'.")
    merged, base_origins = _read_with_base(base_path, chain)
    _merge(merged, mapping)
    return merged, base_origins | origins


def _locate(mapping: dict[str, Any], find: Callable[[str], Path | None]) -> None:
    """Replaces the paths of what a recipe has read by what `find` says, where it finds something."""
    for key in _paths_read():
        *within, name = key.split(".")
        sections: list[Any] = [mapping]
        for part in within:
            dicts = [section for section in sections if isinstance(section, dict)]
            sections = [one for each in dicts for one in (each.values() if part == ANY_NAME else [each.get(part)])]
        for section in sections:
            text = section.get(name) if isinstance(section, dict) else None
            if isinstance(text, str) and text.strip() and not text.startswith(("~", "datasets:")):
                found = shipped_model(text) if key == "model.path" else None
                if (found := find(text) or found) is not None:
                    section[name] = str(found)


def _if_there(path: Path) -> Path | None:
    """Without `..`, as it is shown and kept."""
    return Path(os.path.normpath(path)) if os.path.exists(path) else None


@functools.cache
def _paths_read() -> tuple[str, ...]:
    """Keys of files and folders that a run reads."""
    paths = (key for key, field, _ in nested_settings(Recipe) if field.metadata["path"])
    return (*(key for key in paths if key != "output_dir"), "trainer.deepspeed")


def _merge(into: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        elif not (value is None and isinstance(into.get(key), dict) and key in _SECTIONS):
            into[key] = value


# A section header with nothing under it changes nothing; `lora: null` inside a section does.
_SECTIONS = {field.name for field in settings_of(Recipe)}


def _override(mapping: dict[str, Any], origins: Origins, override: str) -> None:
    """Set one `key.sub=value`, the value read as YAML; list items go by their index."""
    key, equals, text = override.partition("=")
    where = f"command line ({override})"
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise UserError(f"{where}: expected key=value, such as rollout.height=256.")
    if path[0] == "base":
        raise UserError(f"{where}: base is read from a recipe's file alone; name the other recipe in its place.")
    value, value_origins = parse_yaml(text, where, lines=False)
    at: Any = mapping
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(at, list):
            part = _index(part, at, path[:depth], where)
        elif not isinstance(at, dict):
            raise UserError(f"{where}: {key_of(path[:depth])} is {at!r}, which has no key '{part}' to set.")
        if last:
            at[part] = value
        elif isinstance(at, list):
            at = at[part]
        else:
            if at.get(part) is None:
                at[part] = {}
                origins[path[: depth + 1]] = where
            at = at[part]
    for old in [old for old in origins if old[: len(path)] == path]:
        del origins[old]
    origins.update({path + sub: where for sub in value_origins} | {path: where})


def _index(part: str, items: list, path: tuple[str, ...], where: str) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        valid = f"0 to {len(items) - 1}" if items else "none, it is empty"
        raise UserError(f"{where}: '{part}' is not an index of the list {key_of(path)}; valid: {valid}.")
    return int(part)
