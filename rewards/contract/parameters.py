"""A reward's own recipe parameters: matched against the typed keywords of its `__init__` (or of its function)."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

from uniar.errors import UserError, did_you_mean

RECIPE_KEYS = ("use", "name", "weight", "tasks", "clip", "normalize", "on_error", "retries", "offload")
"""Keys that every reward of a recipe has; all others are the reward's own parameters."""


def bind_parameters(target: Callable, given: Mapping[str, Any], skip: Sequence[str] = ()) -> dict[str, Any]:
    """Checks recipe parameters against a signature and returns the keywords to call it with.

    Args:
        target: a class or a function.
        given: parameter name → value as read from YAML.
        skip: names of the signature that a recipe does not set.

    Raises UserError for an unknown name (with the nearest one), a value of another type, a required one left out.
    """
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(target).parameters.items()
        if name not in skip and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    open_ended = inspect.isclass(target) and any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in inspect.signature(target).parameters.values()
    )
    hints = _hints(target)
    bound = {}
    for name, value in given.items():
        if name not in parameters and not open_ended:
            known = ", ".join(parameters) or "none"
            hint = did_you_mean(str(name), [*parameters, *RECIPE_KEYS])
            raise UserError(f"unknown parameter {name!r}; its parameters are: {known}.{hint}")
        try:
            bound[name] = _converted(value, hints.get(name, Any))
        except TypeError as error:
            raise UserError(f"{name} is {value!r}, {error} is needed.") from error
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in bound:
            raise UserError(f"parameter {name!r} is missing and has no default.")
    return bound


def _hints(target: Callable) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except NameError:  # an annotation that exists for type checkers only: the values then go unchecked
        return {}


def _converted(value: Any, annotation: Any) -> Any:
    """The value as the annotation has it (an int for a float, a str for a Path). Raises TypeError whose message names
    what would be right. Annotations that YAML cannot express are not checked."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return _converted_union(value, arguments)
    if origin is Literal:
        # type(...) as well: True == 1, but `sign: true` is not the sign 1.
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise TypeError(" or ".join(repr(choice) for choice in arguments))
    if annotation in (list, tuple, Sequence) or origin in (list, tuple, Sequence):
        if not isinstance(value, list | tuple):
            raise TypeError("a list")
        item = arguments[0] if arguments else Any
        items = [_converted(entry, item) for entry in value]
        return tuple(items) if tuple in (annotation, origin) else items
    if annotation in (dict, Mapping) or origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise TypeError("a mapping")
        return value
    if annotation in (type(None), None):
        if value is not None:
            raise TypeError("null")
        return None
    return _converted_scalar(value, annotation)


def _converted_scalar(value: Any, annotation: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is float:
        if not number:
            # YAML 1.1 reads 1e-4 (no dot) as text, which is easy to miss.
            raise TypeError(f"a number{_number_hint(value)}")
        return float(value)
    if annotation is int and (not number or isinstance(value, float)):
        raise TypeError("a whole number")
    if annotation is bool and not isinstance(value, bool):
        raise TypeError("true or false")
    if annotation in (str, Path) and not isinstance(value, str | Path):
        raise TypeError("a text")
    return Path(value) if annotation is Path else value


def _converted_union(value: Any, options: tuple) -> Any:
    wanted = []
    for option in options:
        try:
            return _converted(value, option)
        except TypeError as error:
            wanted.append(str(error))
    raise TypeError(" or ".join(wanted))


def _number_hint(value: Any) -> str:
    try:
        return f" (YAML reads {value} as text; write {float(value)!r} or put a dot in it)" if value != "" else ""
    except (TypeError, ValueError):
        return ""
