"""A run that has lost one of its processes ends, wherever the others wait.

Collectives over gloo fail at once when a process is gone. NCCL's may wait ten minutes and more, and a process that
waits in one runs no Python: neither an exception nor a signal that has a handler (rl/trainer/stopping.py) reaches it.
So every process watches the others of its machine. Those of other machines are told by the network: their collectives
fail.
"""

import os
import sys
import threading
from types import TracebackType

import psutil
from accelerate import PartialState
from accelerate.utils import gather_object

from uniar.reading.machine import machine

GRACE = 10.0
"""seconds that this process has to end by itself, with an error of its own, after another one has"""


class Peers:
    """As a context, ends this process with exit code 1 when another of the run on this machine ends inside it.

    All processes enter it together, and leave it together unless an exception ends one.
    """

    def __init__(self, every: float = 1.0, grace: float = GRACE) -> None:
        self.every, self.grace = every, grace
        self._others: dict[int, psutil.Process] = {}
        self._left = threading.Event()

    def __enter__(self) -> "Peers":
        self._state = PartialState()
        if self._state.num_processes > 1:
            mine = (self._state.process_index, machine(), os.getpid())
            for rank, host, process in gather_object([mine]):
                if host == mine[1] and rank != mine[0]:
                    self._others[rank] = psutil.Process(process)
            threading.Thread(target=self._watch, name="peers", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is None:
            self._state.wait_for_everyone()
        self._left.set()

    def _watch(self) -> None:
        while not self._left.wait(self.every):
            for rank, process in self._others.items():
                if not _alive(process):
                    self._end(rank, process.pid)
                    return

    def _end(self, rank: int, process: int) -> None:
        if self._left.wait(self.grace):
            return
        here = self._state.process_index
        print(
            f"uniar-rl: the process of rank {rank} (number {process}) has ended, so rank {here} ends too; what went "
            "wrong is said above, by that rank.",
            file=sys.stderr,
            flush=True,
        )
        for child in psutil.Process().children(recursive=True):
            child.terminate()
        os._exit(1)


def _alive(process: psutil.Process) -> bool:
    """False also for one that has ended and is not reaped yet, and for another one that has got its number."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
