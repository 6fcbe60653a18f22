"""argparse for `uniar-rl`: what is not known is named together with what is nearest to it."""

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from uniar.errors import did_you_mean

_HABITS = {
    "--guidance-scale": "--cfg",
    "--num-inference-steps": "--steps",
    "--num-images-per-prompt": "--images-per-prompt",
    "--question": "--prompt",
    "--questions": "--prompts",
}
"""Options by the names that other programs give them."""
_CHOICE = re.compile(r"invalid choice: '(.*?)' \(choose from (.*)\)")


class Parser(argparse.ArgumentParser):
    """Its subparsers are of its kind, and refuse options themselves, so that each hint is of the command's own."""

    def parse_known_args(  # type: ignore[override]  # typeshed's has overloads by the kind of namespace
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """The namespace, and words that no argument takes, options not among them."""
        found, rest = super().parse_known_args(args, namespace)
        for word in rest:
            if word.startswith("-"):
                known = re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", self.format_help())
                name = word.partition("=")[0]
                habits = {one: option for one, option in _HABITS.items() if option in known}
                hint = did_you_mean(habits.get(name.replace("_", "-"), name), known)
                takes_settings = any("=value" in str(action.metavar) for action in self._actions)
                if not hint and takes_settings and re.search("[._]", name):  # else it may be anything
                    hint = f" Settings have no dashes: {word.lstrip('-')}{'' if '=' in word else '=…'}."
                self.error(f"unrecognized arguments: {word}.{hint}")
        return found, rest

    def error(self, message: str) -> NoReturn:
        if choice := _CHOICE.search(message):
            hint = did_you_mean(choice[1], re.findall(r"[\w.-]+", choice[2]))
            message += f".{hint}"
        super().error(message)
