"""Where the command `uniar-rl` begins: under a name that is nobody else's, so that another package called `rl`, or by
another name of ours, is said in one sentence."""

import sys
from importlib.util import find_spec
from pathlib import Path


def main() -> int:
    """`rl.cli.main`; 2 where that is not there, or not ours."""
    spec = find_spec("rl")
    places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
    found = [Path(place).resolve() for place in places if place is not None]
    if not found:
        fault = "the package 'rl' of uniar-rl is not there; install uniar-rl anew."
    elif found[0] != Path(__file__).resolve().with_name("rl") / "__init__.py":
        fault = f"{found[0]} is taken for uniar-rl's own package 'rl'; uninstall what it belongs to."
    else:
        try:
            from rl.cli import main as command
        except ImportError as error:
            if error.name is not None:  # not of rl/rooms.py
                raise
            fault = str(error)
        else:
            return command()
    print(fault, file=sys.stderr)
    return 2
