"""What a user can get wrong, said in one sentence."""

import difflib
import re
from argparse import ArgumentTypeError
from collections.abc import Iterable, Mapping

_LONG = re.compile(r"\S{250,}")


class UserError(ValueError, ArgumentTypeError):
    """Bad input: a config key, a file, a checkpoint, a plug-in. The message is one sentence that names the file, line
    or key, what was found and what is valid; what has no blank in 250 characters, such as a picture in base64, is cut.
    The command line prints it and exits with 2; so does argparse where an argument's type raises it."""

    def __init__(self, sentence: str) -> None:
        super().__init__(_LONG.sub(lambda word: shortened(word[0], 100, 40), sentence))


class RunError(RuntimeError):
    """A run that cannot go on although its input was good, such as a loss that is NaN. The message is one sentence; the
    command line prints it and exits with 1."""


def shortened(value: str, most: int = 60, end: int = 0) -> str:
    """A value that an error shows, cut to `most` characters, of which the last `end` are its own last."""
    return value if len(value) <= most else f"{value[: most - end - 1]}…{value[len(value) - end :]}"


def did_you_mean(name: str, known: Iterable[str], elsewhere: Mapping[str, str] | None = None) -> str:
    """A hint to append to an error: " Did you mean 'x'?" with the nearest known name, or "".

    elsewhere: names that are known in other places -> what they are called from here. The same name in another place is
    nearer than a similar one; abbreviations ("lr") and parts ("batch_size") of a name come last. Names by which
    nothing is called here are looked for as they are.
    """
    names = {one: one for one in known}
    others = elsewhere or {}

    def part_of(one: str) -> bool:
        words = one.split("_")
        return name == "".join(word[:1] for word in words) or set(name.split("_")) <= set(words)

    found = others.get(name)
    others = {one: full for one, full in others.items() if full.rpartition(".")[2] == one}
    for named in (names, others):
        matches = difflib.get_close_matches(name, list(named), n=1, cutoff=0.6 if named is names else 0.8)
        found = found or (named[matches[0]] if matches else None)
    for named in (names, others):
        found = found or next((named[one] for one in sorted(named, key=len) if name[1:] and part_of(one)), None)
    return f" Did you mean {found!r}?" if found else ""
