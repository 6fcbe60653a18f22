"""A disk without room, for tests of what writes."""

import os
import resource
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def files_no_larger_than(size: int):
    """As on a full disk, writes fail; any user may set it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


NAMESPACE = ["unshare", "-rm"]
"""before a command: its user is root there, and may mount"""


class SmallDisk:
    """A file system of a size that can be changed, at `place`: mounted, by sudo if it must be, or where nobody may
    mount and shared memory is small, as in a container, what a large file leaves of that."""

    def __init__(self, place: Path) -> None:
        self.place, self._ahead, self._ballast = place, self._mount(place), None
        if self._ahead is None:
            memory = Path("/dev/shm")
            if not os.access(memory, os.W_OK) or shutil.disk_usage(memory).total > 2**28:
                raise PermissionError("nobody may mount here")
            self.place = Path(tempfile.mkdtemp(dir=memory))
            self._ballast = self.place / "ballast"

    def _mount(self, place: Path) -> list[str] | None:
        place.mkdir()
        for ahead in ([], ["sudo", "-n"]):
            command = [*ahead, "mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", str(place)]
            if shutil.which(command[0]) and not subprocess.run(command, capture_output=True).returncode:
                return ahead
        return None

    def resize(self, size: int) -> None:
        if self._ahead is not None:
            command = [*self._ahead, "mount", "-t", "tmpfs", "-o", f"remount,size={size}", "tmpfs", str(self.place)]
            subprocess.run(command, check=True)
            return
        self._ballast.unlink(missing_ok=True)
        used = sum(file.stat().st_blocks * 512 for file in self.place.rglob("*"))
        if (rest := shutil.disk_usage(self.place).free + used - size) > 0:
            with self._ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, rest)

    def close(self) -> None:
        if self._ahead is None:
            shutil.rmtree(self.place)
        else:
            subprocess.run([*self._ahead, "umount", str(self.place)], check=True)
