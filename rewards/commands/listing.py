"""`uniar-rl rewards list`: a line per reward."""

import argparse
import inspect
import re
import textwrap

from rewards.contract.needs import Need, needs_of
from rewards.contract.registry import origin_of, resolve, reward_names
from uniar.errors import UserError

WIDTH = 110


def run(arguments: argparse.Namespace) -> None:
    names = reward_names()
    column = max(map(len, names)) + 2
    for name in names:
        try:
            target = resolve(name)
            summary, needs = summary_of(target), needs_in_words(needs_of(target))
        except (UserError, ModuleNotFoundError) as error:
            summary, needs = "", f"cannot be used: {error}"
        origin = origin_of(name)
        print(name.ljust(column) + (f"({origin}) " if origin != "built in" else "") + summary)
        for line in textwrap.wrap(needs, WIDTH - column, break_on_hyphens=False, break_long_words=False):
            print(" " * column + line)


def summary_of(target: object) -> str:
    """What its module says of a reward in one line, if it is its own module's subject; else the first sentence of its
    docstring."""
    doc = inspect.getdoc(target) or ""
    module = inspect.getdoc(inspect.getmodule(target)) or ""
    head = module.splitlines()[0] if module.startswith("`") else doc
    head = head.partition(": ")[2] if head.startswith("`") else head
    paragraph = " ".join(head.split("\n\n")[0].split())
    return re.split(r"(?<!al)\.\s", paragraph)[0].rstrip(".")


def needs_in_words(needs: list[Need]) -> str:
    """ "needs open_clip (there), owner/name (weights, not downloaded yet), url (a parameter)"."""
    if not needs:
        return "needs nothing else"
    return "needs " + ", ".join(f"{need.what} ({_state(need)})" for need in needs)


def _state(need: Need) -> str:
    if need.how == "parameter":
        return "a parameter"
    if need.how == "weights":
        return "weights, there" if need.there else "weights, not downloaded yet"
    absent = "not installed" if need.how == "package" else "no such file"
    return "there" if need.there else absent
