"""Why a file could not be written: Python, safetensors and torch each say it in an error of their own."""

import errno
import re
import shutil
from pathlib import Path

from safetensors import SafetensorError

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""are said of writing alone"""
OF_A_PATH = {
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENOENT,
    errno.ESTALE,
    errno.ENOTDIR,
    errno.EISDIR,
}
"""may be said of anything"""

_TORCH = ("inline_container", "Parent directory")
"""what torch's errors name: the source file of its writer, which is its reader's too; the folder that is not there"""


def write_failure(error: BaseException) -> str | None:
    """What a library says, in one line, where it could not write a file; None for an error that is not of a file."""
    if isinstance(error, shutil.Error):  # of copying a folder: source, target and reason of each file
        return str(error.args[0][0][2] if isinstance(error.args[0], list) else error).rstrip(".")
    if isinstance(error, OSError):
        of_a_file = error.errno is not None and not isinstance(error, ConnectionError | TimeoutError | InterruptedError)
    elif type(error) is RuntimeError:
        of_a_file = any(name in str(error) for name in _TORCH) and "PytorchStreamReader" not in str(error)
    else:
        of_a_file = isinstance(error, SafetensorError)
    return str(error).splitlines()[0].rstrip(".") if of_a_file and str(error) else None


def failure_within(error: BaseException, folder: Path) -> str | None:
    """The same where other things than writing go on: None too for what may be said of a file outside `folder`."""
    said = write_failure(error)
    if said is None or isinstance(error, RuntimeError | shutil.Error):
        return said
    if isinstance(error, OSError):
        number, names = error.errno, [str(name) for name in (error.filename, error.filename2) if name is not None]
    else:
        found = re.search(r"\(os error (\d+)\)", said)
        number, names = int(found[1]) if found else None, [said]
    # An error of Python's names what it is of; one of safetensors' may hold a path or not.
    within = any(re.search(rf"{re.escape(str(place))}(?![\w.-])", name) for place in _places(folder) for name in names)
    elsewhere = not within and any(re.search(r"(?:^|[\s'\"`(])/\w", name) for name in names)
    return said if (number in NO_ROOM and not elsewhere) or (number in OF_A_PATH and within) else None


def _places(folder: Path) -> set[Path]:
    """The folder by its names: as it was given, from the root, and with links followed."""
    return {folder, folder.absolute(), folder.resolve()}
