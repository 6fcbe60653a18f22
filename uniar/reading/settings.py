"""Typed settings: dataclasses whose fields carry their help text and range, and values from files as annotations say.

A setting's type is one of: str, Path, int, float, bool, a Literal, a list or tuple, a mapping, another such dataclass,
or one of these or null. Whatever does not fit is refused with the place it was written, what was found and what is
valid. Types that a file cannot express (a class, a tensor, …) are passed over beside others, and alone not checked.
"""

import dataclasses
import math
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

from uniar.errors import UserError, did_you_mean, shortened
from uniar.reading.files import user_path

LARGEST_FLOAT = (2 - 2**-23) * 2.0**127
"""of float32"""
ANY_NAME = "NAME"
"""in a dotted key, for what the user calls it"""
_VARIABLE = re.compile(r"\$(\{[A-Za-z_]\w*\}|[A-Z_][A-Z0-9_]+)")


class PluginName(str):
    """As a type of a setting: a name with a colon, `path/to/file.py:name` or `package.module:name`."""


# Where each key was written: path of keys and list indices -> "configs/x.yaml, line 3" or "command line".
Origins = dict[tuple[str, ...], str]


def setting(
    help: str,
    default: Any = dataclasses.MISSING,
    *,
    factory: Any = dataclasses.MISSING,
    ge: float | None = None,
    gt: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    path: bool = False,
    fixed: str | None = None,
    kind: Any = None,
) -> Any:
    """A dataclass field with its help text and, for numbers, its range. Without a default it must be given.

    path: its strings are paths, in which `~` is the home folder. fixed: why a resumed run cannot change it.
    kind: the type of what a file gives, where the field has another one.
    """
    metadata = {"help": help, "ge": ge, "gt": gt, "lt": lt, "le": le, "path": path, "fixed": fixed, "kind": kind}
    return dataclasses.field(default=default, default_factory=factory, metadata=metadata)


def settings_of(cls: type) -> list[dataclasses.Field]:
    """The fields of a dataclass that a user may set: those made with `setting`."""
    return [field for field in dataclasses.fields(cls) if "help" in field.metadata]


def types_of(cls: type) -> dict[str, Any]:
    """Of the values that a file may give for each setting."""
    hints = typing.get_type_hints(cls)
    return {field.name: field.metadata["kind"] or hints[field.name] for field in settings_of(cls)}


def nested_settings(cls: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field, Any]]:
    """The dotted key, field and type of each setting of a dataclass, those of a section after the section itself.
    Sections in lists have no keys of their own."""
    hints = types_of(cls)
    for field in settings_of(cls):
        key, hint = f"{prefix}{field.name}", hints[field.name]
        yield key, field, hint
        if (named := _section_by_name(hint)) is not None:
            yield from nested_settings(named, f"{key}.{ANY_NAME}.")
            continue
        for kind in (hint, *typing.get_args(hint)):
            if isinstance(kind, type) and dataclasses.is_dataclass(kind) and typing.get_origin(hint) not in _LISTS:
                yield from nested_settings(kind, f"{key}.")


def _section_by_name(kind: Any) -> type | None:
    """The dataclass of a mapping of such under names of the user's; None for any other type."""
    section = typing.get_args(kind)[1:]
    by_name = typing.get_origin(kind) in _MAPPINGS and len(section) == 1 and dataclasses.is_dataclass(section[0])
    return section[0] if by_name else None


def key_of(path: tuple[str, ...]) -> str:
    return ".".join(path)


def origin_of(path: tuple[str, ...], origins: Origins) -> str:
    """Where the key, or else the nearest mapping or list around it, was written."""
    for length in range(len(path), -1, -1):
        if path[:length] in origins:
            return origins[path[:length]]
    return "recipe"


def home_expanded(text: str, path: tuple[str, ...], origins: Origins) -> str:
    """A path of a recipe with `~` replaced by the home folder, and `$NAME` by what the environment has; "datasets:" may
    stand before it, ":name" after it. Raises UserError as `user_path` does, and for a variable that is not set."""
    scheme, text = ("datasets:", text[9:]) if text.startswith("datasets:") else ("", text)
    expanded = os.path.expandvars(text)
    if not expanded.strip():
        return scheme + expanded
    try:
        if unset := _VARIABLE.search(expanded):
            raise UserError(f"'{text}' names the variable {unset[0]}, which the environment does not have.")
        path_of_it = str(user_path(expanded))
        return scheme + (path_of_it if expanded.startswith("~") else expanded)
    except UserError as error:
        raise UserError(f"{origin_of(path, origins)}: {key_of(path)}: {error}") from error


def build(
    cls: type,
    data: Any,
    path: tuple[str, ...] = (),
    origins: Origins | None = None,
    elsewhere: Mapping[str, str] | None = None,
) -> Any:
    """`data`, a plain mapping, as an instance of the dataclass `cls`.

    path: the keys that lead to `data`, for messages. origins: where each key was written. elsewhere: names of settings
    of other sections, and names that nothing has here, with their section or without -> full keys, for hints.
    Raises UserError for an unknown or missing key, a wrong type, a value out of range.
    """
    origins, elsewhere = origins or {}, elsewhere or {}
    where = origin_of(path, origins)
    data = {} if data is None else data  # a section header with nothing under it
    if not isinstance(data, Mapping):
        raise UserError(f"{where}: {_subject(path)} is {shown_value(data)}, expected a mapping of settings.")
    fields = {field.name: field for field in settings_of(cls)}
    for name in data:
        if name not in fields:
            full = (*path, str(name))
            named = elsewhere.get(key_of(full))  # in just this place
            hint = f" Did you mean {named!r}?" if named else did_you_mean(str(name), fields, elsewhere)
            hint = hint or f" Valid here: {', '.join(fields)}."
            raise UserError(f"{origin_of(full, origins)}: unknown key '{key_of(full)}'.{hint}")
    return cls(**checked_values(cls, data, path, origins, elsewhere))


def checked_values(
    cls: type,
    data: Mapping[str, Any],
    path: tuple[str, ...],
    origins: Origins,
    elsewhere: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Those of `data` that the dataclass `cls` has settings for, as `build` would give them to it."""
    hints, fields = types_of(cls), {field.name: field for field in settings_of(cls)}
    values = {
        name: check_type(data[name], hints[name], (*path, name), origins, field.metadata, elsewhere)
        for name, field in fields.items()
        if name in data
    }
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            where = origin_of(path, origins)
            raise UserError(f"{where}: {key_of((*path, name))} is missing; expected {expected(hints[name])}.")
    return values


def check_type(
    value: Any,
    hint: Any,
    path: tuple[str, ...],
    origins: Origins,
    metadata: Mapping | None = None,
    elsewhere: Mapping[str, str] | None = None,
) -> Any:
    """`value` as the type `hint`: dataclasses built, whole numbers turned into floats where a float is asked for, texts
    into paths. An origin that is empty is left out of the message."""
    metadata = metadata or {}
    options, optional = _options(hint)
    if (value is None and optional) or not options:
        return value
    for option in options:
        if isinstance(option, type) and dataclasses.is_dataclass(option):
            return build(option, value, path, origins, elsewhere)
        origin, args = typing.get_origin(option), typing.get_args(option)
        # type(...) as well: True == 1, but `sign: true` is not the sign 1.
        if origin is Literal and any(value == choice and type(value) is type(choice) for choice in args):
            return value
        if option is PluginName and isinstance(value, str) and ":" in value:
            return home_expanded(value, path, origins)
        kind = origin or option
        if kind in _LISTS and isinstance(value, list | tuple):
            items = [check_type(item, (*args, Any)[0], (*path, str(i)), origins) for i, item in enumerate(value)]
            return tuple(items) if kind is tuple else items
        if (section := _section_by_name(option)) is not None and isinstance(value, Mapping):
            return {str(name): build(section, each, (*path, str(name)), origins) for name, each in value.items()}
        if option is Any or (kind in _MAPPINGS and isinstance(value, Mapping)):
            return value
        if option is float and (_is_whole(value) or (isinstance(value, float) and _is_usable(value, metadata))):
            return _in_range(float(value), hint, path, origins, metadata)
        if option is int and _is_whole(value):
            return _in_range(value, hint, path, origins, metadata)
        if option in (bool, str) and isinstance(value, option):
            return home_expanded(value, path, origins) if metadata.get("path") and option is str else value
        if option is Path and isinstance(value, str | Path):
            return Path(value)
    choices = [str(choice) for option in options if typing.get_origin(option) is Literal for choice in option.__args__]
    named = (elsewhere or {}).get(f"{key_of(path)}={value}")
    hint_text = f" Did you mean {named!r}?" if named else did_you_mean(value, choices) if isinstance(value, str) else ""
    where = origin_of(path, origins)
    said = f"{key_of(path)} is {shown_value(value)}, expected {expected(hint, metadata)}.{hint_text}"
    raise UserError(f"{where}: {said}" if where else said)


def expected(hint: Any, metadata: Mapping | None = None) -> str:
    """The type and range of a setting in words: "a whole number ≥ 1 or null"."""
    options, optional = _options(hint)
    words = [word for option in options for word in _in_words(option, metadata or {})] + ["null"] * optional
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _options(hint: Any) -> tuple[list[Any], bool]:
    """The alternatives of a type that a file can express, null apart."""
    args = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    return [arg for arg in args if _is_expressible(arg)], type(None) in args or None in args


def _is_expressible(option: Any) -> bool:
    kind = typing.get_origin(option) or option
    return kind in (*_LISTS, *_MAPPINGS, *_PLAIN) or dataclasses.is_dataclass(option)


def _in_words(option: Any, metadata: Mapping) -> list[str]:
    if typing.get_origin(option) is Literal:
        choices = [repr(choice) for choice in typing.get_args(option)]
        return choices if len(choices) <= 12 else [f"one of {len(choices)} names such as {', '.join(choices[:3])}"]
    if (typing.get_origin(option) or option) in _LISTS:
        items = {str: "strings", int: "whole numbers", float: "numbers", Any: "values"}
        of = _options((*typing.get_args(option), Any)[0])[0]
        return [f"a list of {items.get((*of, Any)[0], 'mappings')}"]
    if option in (int, float):
        bounds = [f"{sign} {metadata[key]:.10g}" for key, sign in _BOUNDS.items() if metadata.get(key) is not None]
        return [" ".join(["a whole number" if option is int else "a number", " and ".join(bounds)]).strip()]
    return [
        {
            bool: "true or false",
            str: "a string",
            Path: "a string",
            PluginName: "path/to/file.py:name",
            Any: "any value",
        }.get(option, "a mapping")
    ]


_LISTS, _MAPPINGS = (list, tuple, Sequence), (dict, Mapping)
_PLAIN = (str, PluginName, Path, int, float, bool, Any, Literal)
_BOUNDS = {"ge": "≥", "gt": ">", "lt": "<", "le": "≤"}


def _in_range(value: Any, hint: Any, path: tuple[str, ...], origins: Origins, metadata: Mapping) -> Any:
    ge, gt, lt, le = (metadata.get(key) for key in _BOUNDS)
    too_low = (ge is not None and value < ge) or (gt is not None and value <= gt)
    if too_low or (lt is not None and value >= lt) or (le is not None and value > le):
        shown = value if isinstance(value, int) else format(value, ".15g")
        raise UserError(f"{origin_of(path, origins)}: {key_of(path)} is {shown}, expected {expected(hint, metadata)}.")
    return value


def _is_usable(value: float, metadata: Mapping) -> bool:
    """Whether it fits float32, as what it is computed with does: 1e308 times anything else would be infinite."""
    return abs(value) <= LARGEST_FLOAT or metadata.get("infinite", False)


def _is_whole(value: Any) -> bool:
    """Whether it is a whole number that fits 64 bits, as every number here must in the end."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _subject(path: tuple[str, ...]) -> str:
    return key_of(path) or "the content"


def shown_value(value: Any) -> str:
    """A found value and its kind, short enough for one sentence."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    kinds = {int: "a whole number", float: "a number", str: "a string", list: "a list"}
    if isinstance(value, float) and not abs(value) <= LARGEST_FLOAT:
        return f"{value} ({'past float32' if math.isfinite(value) else 'not finite'})"
    text = repr(value) if not isinstance(value, int) or _is_whole(value) else f"a number of {value.bit_length()} bits"
    kind = kinds.get(type(value), "a mapping" if isinstance(value, dict) else type(value).__name__)
    return f"{shortened(text)} ({kind})"
