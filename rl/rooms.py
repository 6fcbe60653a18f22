"""Whether the packages beside `rl` are ours: `python -m` puts the current folder first on the path, and a user's own
`rewards.py` or `uniar/` there would take their place; so would another package's that is installed."""

import sys
from importlib.util import find_spec
from pathlib import Path

ROOMS = ("uniar", "inference", "rewards")


def check_rooms() -> None:
    """Raises ImportError, one sentence, where a package of ours is found elsewhere than beside this one; of a command
    that `python -m` or a launcher starts, prints it and exits with 2."""
    root = Path(__file__).resolve().parent.parent
    for name in ROOMS:
        spec = find_spec(name)
        places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
        found = [Path(place).resolve() for place in places if place is not None]
        if root / name in found:
            continue
        fault = f"{root / name} is not there, or its folder is not on Python's path; install uniar-rl."
        if found:
            top = found[0].parent if found[0].name == "__init__.py" else found[0]
            what_helps = (
                "rename it, start in another folder, or start with the command uniar-rl, which does not look there "
                "(`torchrun --no-python uniar-rl train …`)"
                if top.parent == Path.cwd().resolve()
                else "uninstall what it belongs to, or give uniar-rl an environment of its own"
            )
            fault = f"{found[0]} is taken for uniar-rl's own package '{name}'; {what_helps}."
        if sys.argv[:1] == ["-m"]:  # until Python has found the module that it was asked to run
            print(fault, file=sys.stderr)
            sys.exit(2)
        raise ImportError(fault)
