"""Where the command `uniar-rl` begins: under a name that is nobody else's, so that another package called `rl`, or by
another name of ours, is said in one sentence."""

import sys


def main() -> int:
    """`rl.cli.main`; 2 where that is not there, or not ours."""
    try:
        from rl.cli import main as command
    except ImportError as error:
        if error.name not in (None, "rl", "rl.cli"):  # a library that is missing
            raise
        fault = str(error)  # of rl/rooms.py
        if error.name == "rl":
            fault = "the package 'rl' of uniar-rl is not there; install uniar-rl anew."
        elif error.name is not None:
            found = sys.modules["rl"]
            place = getattr(found, "__file__", None) or next(iter(found.__path__))
            fault = f"{place} is taken for uniar-rl's own package 'rl'; uninstall what it belongs to."
        print(fault, file=sys.stderr)
        return 2
    return command()
