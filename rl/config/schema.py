"""The JSON Schema of recipes, for editors: keys, types, ranges and help texts, from the settings themselves."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rewards.contract.spec import RewardSpec
from rl.config import trainer_arguments
from rl.config.sections import Recipe
from uniar.reading.settings import PluginName, settings_of, types_of

_PLAIN = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string", PluginName: "string"}
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def recipe_schema() -> dict[str, Any]:
    """Of a recipe's file. No key is required, as its base may have it."""
    schema = _of_settings(Recipe)
    trainer = {
        name: _of_type(trainer_arguments.kind_of(name), taken.bounds)
        for name, taken in trainer_arguments.TAKEN.items()
        if name in trainer_arguments.trl_arguments()
    }
    schema["properties"]["trainer"] |= {"properties": trainer, "additionalProperties": False}
    reward = {"anyOf": [{"type": "string"}, {**_of_settings(RewardSpec), "additionalProperties": True}]}
    for key in ("rewards", "eval_rewards"):
        schema["properties"][key] |= {"type": ["array", "null"], "items": reward}
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Recipe of uniar-rl", **schema}


def _of_settings(cls: type) -> dict[str, Any]:
    """An object with the settings of a dataclass, and nothing else."""
    hints = types_of(cls)
    properties = {}
    for field in settings_of(cls):
        found = _of_type(hints[field.name], field.metadata)
        if dataclasses.is_dataclass(hints[field.name]):
            found = _any_of([found, {"type": "null"}])  # a section's name with nothing under it
        found |= {"description": field.metadata["help"]}
        if field.default is not dataclasses.MISSING and isinstance(field.default, str | int | float | bool | None):
            found |= {"default": field.default}
        properties[field.name] = found
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _of_type(hint: Any, bounds: Mapping[str, Any]) -> dict[str, Any]:
    """Of the values of a type; {}, anything, for a type that is checked elsewhere."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return _any_of([_of_type(option, bounds) for option in typing.get_args(hint)])
    kind, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is Literal:
        return {"enum": list(args)}
    if kind is types.NoneType:
        return {"type": "null"}
    if kind in _PLAIN:
        limits = {word: bounds[name] for name, word in _BOUNDS.items() if bounds.get(name) is not None}
        return {"type": _PLAIN[kind], **(limits if kind in (int, float) else {})}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _of_settings(hint)
    if isinstance(kind, type) and issubclass(kind, Mapping):
        within = {"additionalProperties": _of_settings(args[1])} if dataclasses.is_dataclass((*args, 0, 0)[1]) else {}
        return {"type": "object", **within}
    if kind in (list, tuple):
        return {"type": "array", "items": _of_type(args[0], {}) if args else {}}
    return {}


def _any_of(options: list[dict[str, Any]]) -> dict[str, Any]:
    """Types beside each other are one list of types, whose ranges and properties each count for their own."""
    if {} in options:
        return {}
    merged: dict[str, Any] = {}
    for option in options:
        if not isinstance(option.get("type"), str) or len(merged.keys() & option.keys() - {"type"}):
            return {"anyOf": options}
        merged |= {**option, "type": [*merged.get("type", []), option["type"]]}
    return merged
