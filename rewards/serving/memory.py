"""The memory that a server's requests take together: counted before it is taken, and no more than a bound."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_MMAP_THRESHOLD, _LARGE = -3, 2**20  # glibc's M_MMAP_THRESHOLD


class Memory:
    """Shares `most` bytes among requests. Any thread may call it."""

    def __init__(self, most: int):
        self.most = most
        self.lock = threading.RLock()
        self.leases: set[Lease] = set()

    @contextmanager
    def lease(self) -> Iterator["Lease"]:
        """A request's share, which grows and shrinks with what it holds; given back at the block's end."""
        lease = Lease(self)
        with self.lock:
            self.leases.add(lease)
        try:
            yield lease
        finally:
            with self.lock:
                self.leases.discard(lease)


class Lease:
    """What one request holds: bytes of its own, and those that scoring it takes for a moment. One request is scored at
    a time, so that of the latter the most of any counts."""

    def __init__(self, memory: Memory):
        self._memory, self.own, self.scoring = memory, 0, 0

    def hold(self, own: int) -> bool:
        """Holds so many bytes from now on, in place of what it held, where there is room; whether there was."""
        with self._memory.lock:
            if own > self.own and not self._fits(own):
                return False
            self.own = own
            return True

    def claim(self, own: int, scoring: int) -> None:
        """Holds less, and keeps others from growing until there is room to score this, which `has_room` tells."""
        with self._memory.lock:
            self.own, self.scoring = min(own, self.own), scoring

    def has_room(self, own: int) -> bool:
        """Whether it could hold so many bytes."""
        with self._memory.lock:
            return self._fits(own)

    def _fits(self, own: int) -> bool:
        """A request that is alone always does, as its limits bound it."""
        others = [lease for lease in self._memory.leases if lease is not self and lease.own]
        scoring = max([self.scoring, *(lease.scoring for lease in others)])
        return not others or own + sum(lease.own for lease in others) + scoring <= self._memory.most


def return_large_blocks() -> None:
    """Has the C library give large blocks back when they are freed. glibc keeps those below 32 MB once it has seen
    some, each thread its own: as much again as requests hold."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE)
