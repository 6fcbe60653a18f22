"""What a user can get wrong, said in one sentence."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: a config key, a file, a checkpoint, a plug-in. The message is one sentence that names the file, line
    or key, what was found and what is valid. The command line prints it and exits with 2."""


class RunError(RuntimeError):
    """A run that cannot go on although its input was good, such as a loss that is NaN. The message is one sentence; the
    command line prints it and exits with 1."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint to append to an error: " Did you mean 'x'?" with the nearest known name, or ""."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {matches[0]!r}?" if matches else ""
