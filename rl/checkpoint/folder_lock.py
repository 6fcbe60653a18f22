"""One run a folder: two that write into the same one would undo each other's checkpoints and double the metrics."""

import errno
import logging
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from rl.checkpoint.layout import LOCK
from uniar.errors import UserError

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""What flock says on Lustre mounted without locks, on some FUSE file systems, on NFS without its lock service."""

logger = logging.getLogger(__name__)


class FolderLock:
    """As a context, holds the folder that is taken inside it; at most one process of any run holds a folder.

    A file system that has no locks is one on which nothing is held: a file whose existence is the lock would outlast a
    killed run and bar the one that goes on. A warning says so.
    """

    def __init__(self) -> None:
        self._held: FileLock | None = None
        self._folder: tuple[Path, int] | None = None  # taken, and its descriptor

    def __enter__(self) -> Self:
        return self

    @property
    def holds(self) -> bool:
        """Whether no other process can have the folder: not where there are no locks."""
        return self._held is not None

    def take(self, folder: Path) -> None:
        """Raises UserError when another run has it: one that goes on, or what a killed launcher has left running."""
        self._let_go()
        self._folder = folder, os.open(folder, os.O_RDONLY)
        lock = FileLock(folder / LOCK, fallback_to_soft=False)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"{folder} is in use: a process of another run trains into it, perhaps one that a killed launcher has "
                "left behind; end it, or choose another output_dir."
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            logger.warning("%s is on a file system without locks: nothing keeps a second run out of it.", folder)
            return
        self._held = lock

    def require_there(self) -> None:
        """Raises UserError where what has the name of the folder that was taken is not that folder any more: a new run
        may have begun there."""
        if self._folder is None:
            return
        folder, descriptor = self._folder
        try:
            same = os.path.samestat(os.fstat(descriptor), os.stat(folder))
        except OSError:
            same = False
        if not same:
            raise UserError(f"{folder} is not the folder that this run began in: it was renamed or removed meanwhile.")

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._let_go()

    def _let_go(self) -> None:
        if self._held is not None:
            self._held.release()
        if self._folder is not None:
            os.close(self._folder[1])
        self._held = self._folder = None
