"""Training runs that kill themselves, with SIGKILL and all their processes, when they come to a given place.

    python tests/support/kill_at.py

Reads from its standard input a line of JSON for each run, starts the run's processes, waits for them, and writes their
exit codes as a line of JSON:

    {"place": "export", "arguments": ["recipe.yaml", "--resume"], "processes": 2, "log": "file for what they print"}

The processes are forked, so that libraries are imported once. Rank 0 is the one that gets to the place, a name that
`places` knows, or `nowhere`.
"""

import functools
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import uniar  # noqa: F401  (first: makes torchvision importable)

LAST = 3
"""updates of the runs that are killed"""


def kill() -> None:
    """This process and the others of its run: they are a group."""
    os.killpg(0, signal.SIGKILL)


def around(owner: Any, name: str, when: Callable[..., bool], *, after: bool) -> None:
    """Kills before or after a call of `owner.name` for which `when` is true, on rank 0."""
    called = getattr(owner, name)

    @functools.wraps(called)
    def calling(*args: Any, **kwargs: Any) -> Any:
        dies = os.environ.get("RANK", "0") == "0" and when(*args, **kwargs)
        if dies and not after:
            kill()
        result = called(*args, **kwargs)
        if dies and after:
            kill()
        return result

    setattr(owner, name, calling)


def places() -> dict[str, tuple[Any, str, Callable[..., bool], bool]]:
    """Name → in what, the call of what, which of its calls, and whether after it rather than before."""
    import rl.checkpoint.folders
    import rl.export.writing
    import rl.train
    import rl.trainer.resumable
    from rl.evaluation.evaluate import Evaluator
    from rl.run.folder import RunFolder
    from rl.trainer.callbacks import RunCallback

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
        "last save, sealed": (rl.checkpoint.folders, "seal", lambda folder, _: folder.name == last, True),
        "last save, in place": (rl.trainer.resumable, "publish", lambda run, name, _: name == last, True),
        "last evaluation": (RunCallback, "on_train_end", always, False),
        "last evaluation, written": (RunFolder, "save_evaluation", of(LAST), True),
        "export": (rl.export.writing, "copy_untrained_parts", always, False),
        "export, recorded": (rl.train, "note_finished", always, True),
        "report": (rl.train, "report", always, False),
    }


def begin(place: str, arguments: list[str], processes: int, log: str) -> list[int]:
    """Starts the processes of a run; their numbers."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    started: list[int] = []
    for rank in range(processes):
        child = os.fork()
        if not child:
            os.setpgid(0, started[0] if started else 0)
            run(place, arguments, log, rank, processes, port)
        os.setpgid(child, started[0] if started else child)
        started.append(child)
    return started


def run(place: str, arguments: list[str], log: str, rank: int, processes: int, port: str) -> NoReturn:
    """What a process does, from its fork to its end."""
    from rl.cli import main

    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    code = 1
    try:
        if processes > 1:
            shared = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            os.environ.update({name: str(value) for name, value in shared.items()})
            os.environ.update({"MASTER_ADDR": "localhost", "MASTER_PORT": port})
        if place != "nowhere":
            owner, name, when, after = places()[place]
            around(owner, name, when, after=after)
        code = main(["train", *arguments])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    places()
    for line in sys.stdin:
        children = begin(**json.loads(line))
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
