"""A reward's own recipe parameters: matched against the typed keywords of its `__init__` (or of its function)."""

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from uniar.errors import UserError, did_you_mean
from uniar.reading.settings import check_type


def bind_parameters(
    target: Callable, given: Mapping[str, Any], skip: Sequence[str] = (), elsewhere: Sequence[str] = ()
) -> dict[str, Any]:
    """Checks recipe parameters against a signature and returns the keywords to call it with, as their annotations say
    (an int for a float, a text for a Path).

    Args:
        target: a class or a function.
        given: parameter name → value as read from YAML.
        skip: names of the signature that a recipe does not set.
        elsewhere: what else a recipe's entry may set, for hints.

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
    hints = hints_of(target)
    bound = {}
    for name, value in given.items():
        if name not in parameters and not open_ended:
            known = ", ".join(parameters) or "none"
            hint = did_you_mean(str(name), [*parameters, *elsewhere])
            raise UserError(f"unknown parameter {name!r}; its parameters are: {known}.{hint}")
        bound[name] = check_type(value, hints.get(name, Any), (str(name),), {(): ""}, {"infinite": True})
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in bound:
            raise UserError(f"parameter {name!r} is missing and has no default.")
    return bound


def hints_of(target: Callable) -> dict[str, Any]:
    """The annotations of a class's `__init__` or of a function; none where one exists for type checkers only, and of
    what is called like a function but is none, such as a `functools.partial`."""
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError):
        return {}
