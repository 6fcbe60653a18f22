"""Python processes that have the libraries loaded when they start: forked from one that has done nothing else.

For what needs processes of its own, but not fresh ones: to load the libraries takes several seconds of a core in each.
What is about the order of imports, or about the launchers themselves, starts fresh ones.
"""

import atexit
import functools
import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from multiprocessing import forkserver
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
LOADED = ["rl.train", "rl.commands.evaluate", "trl.trainer.grpo_trainer", "torch.distributed.run"]


def run_warm(
    *words: object,
    processes: int | None = None,
    cwd: Path = ROOT,
    variables: Mapping[str, str] | None = None,
    timeout: float = 600,
) -> subprocess.CompletedProcess[str]:
    """`python WORDS`, which begin with `-m MODULE`, `-c CODE` or a script's path; with `processes`, so many, as
    `torchrun --standalone` starts them. variables: of the environment, besides those of this process."""
    arguments = [str(word) for word in words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(variables or {})}
    with TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in ("stdout", "stderr")]
        process = _forks().Process(target=_begin, args=(arguments, processes, cwd, environment, streams))
        process.start()
        process.join(timeout)
        said, complained = (file.read_text() if file.exists() else "" for file in streams)
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)  # with those that it started
            raise subprocess.TimeoutExpired(arguments, timeout, said, complained)
        return subprocess.CompletedProcess(arguments, process.exitcode, said, complained)


@functools.cache
def _forks() -> multiprocessing.context.ForkServerContext:
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(LOADED)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)  # where the server finds them, whatever the current folder is
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    return forks


def _begin(words: list[str], processes: int | None, cwd: Path, environment: dict, streams: list[Path]) -> None:
    os.setsid()
    gc.freeze()  # the libraries' objects: a collection would copy them
    for number, file in enumerate(streams, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    if processes is None:
        _interpret(words)
        return
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    options = ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", f"--nproc_per_node={processes}"]
    config, *_ = config_from_args(parse_args([*options, "--start_method=fork", "no script"]))
    elastic_launch(config, _interpret)(words)


def _interpret(words: list[str]) -> None:
    """As the interpreter does, from its arguments to its end."""
    status: object = 0
    try:
        kind = words[0] if words[0] in ("-m", "-c") else None
        sys.argv = ["-c", *words[2:]] if kind == "-c" else words[1 if kind else 0 :]
        sys.path[0] = "" if kind else str(Path(words[0]).parent)
        if kind == "-m":
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as error:
        status = error.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if status:
        os._exit(status)
