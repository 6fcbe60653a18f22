"""`uniar-rl rewards describe NAME`."""

import argparse
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Callable
from typing import Any

from rewards.commands.entries import read_parameters
from rewards.commands.listing import WIDTH, needs_in_words
from rewards.contract.function import OWN_COLUMNS
from rewards.contract.needs import needs_of
from rewards.contract.parameters import hints_of
from rewards.contract.registry import resolve


def run(arguments: argparse.Namespace) -> None:
    """Raises UserError for a reward that there is not."""
    target = resolve(arguments.name)
    about, helps = split_doc(inspect.getdoc(target) or "")
    print(f"{arguments.name}: {about}" if about else arguments.name)
    rows = [
        (parameter.name, *described(parameter, hint), helps.get(parameter.name, ""))
        for parameter, hint in parameters_of(target)
    ]
    print("\nparameters:" if rows else "\nno parameters")
    for name, kind, default, text in rows:
        print(f"  {name}: {kind}{default}")
        for line in textwrap.wrap(text, WIDTH - 6):
            print(f"      {line}")
    if getattr(target, "usual_range", None):
        low, high = target.usual_range
        print(f"\nusual range: {low:g} to {high:g}")
    print(f"\n{needs_in_words(needs_of(target, read_parameters(arguments.parameters)))}")


def parameters_of(target: Callable) -> list[tuple[inspect.Parameter, Any]]:
    """The parameters that a recipe may set, each with its annotation."""
    hints, found = hints_of(target), []
    for parameter in inspect.signature(target).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            continue
        column = not inspect.isclass(target) and (parameter.name in OWN_COLUMNS or parameter.default is parameter.empty)
        if not column:
            found.append((parameter, hints.get(parameter.name, Any)))
    return found


def described(parameter: inspect.Parameter, hint: Any) -> tuple[str, str]:
    """("float", " = 0.3")."""
    return _kind(hint), ", required" if parameter.default is parameter.empty else f" = {parameter.default!r}"


def _kind(hint: Any) -> str:
    """An annotation in few words: "str | None", "'text' | 'json'"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_kind, arguments))
    if origin is typing.Literal:
        return " | ".join(map(repr, arguments))
    if hint in (Any, type(None)):
        return "any" if hint is Any else "None"
    return hint.__name__ if inspect.isclass(hint) and not arguments else re.sub(r"(\w+\.)+", "", str(hint))


def split_doc(doc: str) -> tuple[str, dict[str, str]]:
    """A docstring as what stands before its `Args:` section, and the help of each argument in it."""
    about, _, rest = doc.partition("\nArgs:\n")
    helps: dict[str, str] = {}
    names: list[str] = []
    for line in rest.splitlines():
        if line and not line.startswith(" "):
            break
        match = re.match(r" {4}(\w+(?:, \w+)*): (.*)", line)
        if match:
            names = match[1].split(", ")
            helps.update(dict.fromkeys(names, match[2]))
        elif line.strip():
            helps.update({name: f"{helps[name]} {line.strip()}" for name in names})
    return about.strip(), helps
