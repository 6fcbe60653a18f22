"""A training run that kills itself, with SIGKILL and all its processes, when it comes to a given place.

    python tests/kill_at.py PLACE RECIPE [more arguments of `uniar-rl train`]

Each process of the run is started like this; rank 0 is the one that gets there. The place `nowhere` is never come to.
"""

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import uniar  # noqa: F401  (first: makes torchvision importable)

LAST = 3
"""updates of the runs that are killed"""


def kill(*_: Any, **__: Any) -> None:
    """This process and, started by torchrun, the other ones: their launcher is their parent."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        import psutil

        launcher = psutil.Process(os.getppid())
        for process in [launcher, *launcher.children(recursive=True)]:
            if process.pid != os.getpid():
                process.kill()
    os.kill(os.getpid(), signal.SIGKILL)


def around(owner: Any, name: str, when: Callable[..., bool], *, after: bool) -> None:
    """Kills before or after a call of `owner.name` for which `when` is true, on rank 0."""
    called = getattr(owner, name)

    @functools.wraps(called)
    def calling(*args: Any, **kwargs: Any) -> Any:
        dies = os.environ.get("RANK", "0") == "0" and when(*args, **kwargs)
        if dies and not after:
            kill()
        result = called(*args, **kwargs)
        return kill() if dies else result

    setattr(owner, name, calling)


def places() -> dict[str, tuple[Any, str, Callable[..., bool], bool]]:
    """Name → in what, the call of what, which of its calls, and whether after it rather than before."""
    import rl.chassis
    import rl.checkpoints
    import rl.export
    import rl.train
    from rl.callbacks import RunCallback
    from rl.evaluate import Evaluator
    from rl.run_folder import RunFolder

    def at(step: int) -> Callable[..., bool]:
        return lambda self, args, state, *_, **__: state.global_step == step

    def of(step: int) -> Callable[..., bool]:
        return lambda self, number, *_, **__: number == step

    def always(*_: Any, **__: Any) -> bool:
        return True

    last = f"checkpoint-{LAST}"
    return {
        "first evaluation": (Evaluator, "_finish", always, False),
        "first evaluation, written": (RunFolder, "save_evaluation", of(0), True),
        "first line": (RunFolder, "append", of(0), True),
        "first update": (RunCallback, "on_step_end", at(1), False),
        "last update": (RunCallback, "on_step_end", at(LAST), False),
        "last save, sealed": (rl.checkpoints, "seal", lambda folder: folder.name == last, True),
        "last save, in place": (rl.chassis, "publish", lambda run, name: name == last, True),
        "last evaluation": (RunCallback, "on_train_end", always, False),
        "last evaluation, written": (RunFolder, "save_evaluation", of(LAST), True),
        "export": (rl.export, "copy_untrained_parts", always, False),
        "export, in place": (rl.train, "note_finished", always, False),
        "report": (rl.train, "report", always, False),
    }


if __name__ == "__main__":
    from rl.cli import main

    if sys.argv[1] != "nowhere":
        owner, name, when, after = places()[sys.argv[1]]
        around(owner, name, when, after=after)
    sys.exit(main(["train", *sys.argv[2:]]))
