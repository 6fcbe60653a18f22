"""Files that are read back later: written whole or not at all, read with a sentence that names them."""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import psutil

from uniar.errors import UserError, shortened
from uniar.reading.machine import machine

HUB_ID = re.compile(r"[\w.-]*\w/[\w.-]*\w")
"""What a model of the Hugging Face hub may be called: owner/name."""

PARTIAL = ".partial"
"""End of the name of a file that is being written."""

LONGEST = 255
"""bytes of a file's name, on most file systems"""

_LONGEST_PATH = 4096
_LONGEST_REASON = 300

ADDRESS = re.compile(r"data:|[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
"""How what is not a path begins; Path makes one slash of two."""

CLOCKS = 60.0
"""seconds by which the clock of a shared disk may be behind"""


def user_path(path: str | Path) -> Path:
    """A path as a user gives it: `~` is their home folder. Raises UserError for a user who does not exist, for an
    address, for what no file can be called, and for nothing at all, as an unset variable of a shell gives."""
    if not str(path).strip():
        raise UserError(f"a path is empty ({str(path)!r}); name a file or folder.")
    if ADDRESS.match(str(path)):
        raise UserError(
            f"'{path}' is an address, not a path; save what is there and name the file or folder "
            "(of the Hugging Face hub: owner/name for a model, datasets:owner/name for prompts)."
        )
    try:
        expanded = Path(path).expanduser()
        longest = max(len(os.fsencode(part)) for part in (*expanded.parts, "."))
    except UnicodeEncodeError:
        raise UserError(f"the path {str(path)!r} is not text in UTF-8.") from None
    except RuntimeError as error:
        raise UserError(
            f"the path '{path}' begins with a user's home folder that is not known: {reason_of(error)}."
        ) from error
    if longest > LONGEST or len(os.fsencode(expanded)) >= _LONGEST_PATH:
        raise UserError(f"the path '{path}' is too long: a name may have {LONGEST} bytes, a path {_LONGEST_PATH}.")
    if "\0" in str(path):
        raise UserError(f"the path {str(path)!r} holds a NUL.")
    return expanded


def read_regular(path: Path, what: str = "file") -> bytes:
    """The content of a file. Raises UserError where it is missing or cannot be read, and for anything but a file: a
    device or a pipe may have no end."""
    try:
        if not stat.S_ISREG(mode := path.stat().st_mode):
            kind = "folder" if stat.S_ISDIR(mode) else "device or a pipe"
            raise UserError(f"the {what} '{path}' cannot be read: it is a {kind}.")
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"the {what} '{path}' does not exist.") from None
    except OSError as error:
        raise UserError(f"the {what} '{path}' cannot be read: {error.strerror}.") from error
    except ValueError as error:  # a NUL in the path
        raise error if isinstance(error, UserError) else UserError(f"the path {str(path)!r} holds a NUL.") from error


def decoded(content: bytes, path: str | Path, what: str = "file") -> str:
    """The text of a file, without the mark it may begin with. Raises UserError for what is not text in UTF-8."""
    encoding = json.detect_encoding(content)  # by the mark it begins with, or by where NULs stand without one
    if not encoding.startswith("utf-8") and "\0" not in content.decode(encoding, "replace"):
        name = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
        raise UserError(
            f"the {what} '{path}' is not text in UTF-8 but looks like {name}; save it as UTF-8, such as with "
            f"`iconv -f {name} -t UTF-8 OLD > NEW`."
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"the {what} '{path}' is not text in UTF-8: {error.reason} in line {line}.") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever the disk refuses inside, as a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"'{path}' cannot be written: {error.strerror or reason_of(error)}.") from error


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Adds a line of JSON. Raises UserError where that cannot be; the line may then be cut short."""
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(values, ensure_ascii=False, default=str) + "\n")


def unfinished_path(path: Path, process: int) -> Path:
    """Where a process of this machine writes what is to become `path`: .NAME.HOST-NAMESPACE.PID.partial beside it. Of a
    name that would be too long so, the end is kept."""
    end = f".{machine()}.{process}{PARTIAL}"
    name, room = os.fsencode(path.name), LONGEST - len(f".{end}")
    if len(name) > room:  # the digest tells names of the same end apart
        name = hashlib.sha256(name).hexdigest()[:16].encode() + name[16 - room :]
    return path.with_name(f".{name.decode(errors='ignore')}{end}")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to. What was written is on the disk and takes the place of `path` when the block
    ends; when it raises, or the process is killed meanwhile, `path` is as it was. Raises OSError as writing does."""
    unfinished = unfinished_path(path, os.getpid())
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all. Raises OSError as writing does, and leaves `path` as it was then."""
    with whole_file(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


def remove_unfinished(folder: Path, *patterns: str) -> None:
    """Removes what `whole_file` has left where its process was killed, of files that match patterns under a folder, and
    that this user's processes of this machine began. What a process is writing that is alive stays, and so does what
    cannot be removed: it is in nobody's way."""
    with suppress(OSError):
        for pattern in patterns:
            above, _, name = pattern.rpartition("/")
            for file in folder.glob(f"{above or '.'}/.{name}.{machine()}.*{PARTIAL}"):
                number = file.suffixes[-2][1:]
                with suppress(OSError):
                    if number.isdecimal() and not _may_be_being_written(file, int(number)):
                        file.unlink(missing_ok=True)


def _may_be_being_written(file: Path, process: int) -> bool:
    """Whether this user's processes did not begin it, or the process is alive and may be the one that did:
    numbers are given again, in a container soon."""
    found = file.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        return True
    try:
        return psutil.Process(process).create_time() <= found.st_mtime + CLOCKS
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def read_json(path: Path, what: str = "file") -> Any:
    """The content of a JSON file. Raises UserError naming the file where it is missing, cut, or not JSON in UTF-8."""
    text = decoded(read_regular(path, what), path, what)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # JSON, a number of thousands of digits, nesting
        raise UserError(f"the {what} '{path}' is not whole, valid JSON: {reason_of(error)}.") from error


def read_object(path: Path, what: str = "file") -> dict[str, Any]:
    """The object in a JSON file. Raises UserError as `read_json` does, and for anything else than an object."""
    content = read_json(path, what)
    if not isinstance(content, dict):
        raise UserError(f"the {what} '{path}' is not a JSON object.")
    return content


def require_writable(folder: Path) -> None:
    """Raises UserError where a folder is not there and cannot be made, or is there and not to be written to. Leaves
    nothing behind."""
    try:
        above = folder
        while not above.exists():  # raises OSError for a name that is too long
            above = above.parent
        if not above.is_dir():
            raise UserError(f"'{folder}' cannot be made: '{above}' is not a folder.")
        if not os.access(above, os.W_OK | os.X_OK):
            raise UserError(f"'{folder}' cannot be written: no permission to write into '{above}'.")
        with writing(folder), TemporaryFile(dir=above):  # root may write anywhere, though not into every file system
            pass
        for part in folder.relative_to(above).parts:
            if len(os.fsencode(part)) > os.pathconf(above, "PC_NAME_MAX"):
                raise UserError(f"'{folder}' cannot be made: a name in it is too long.")
    except OSError as error:
        raise UserError(f"'{folder}' cannot be made: {error.strerror}.") from error


def reason_of(error: BaseException) -> str:
    """What a library says went wrong, for the end of a sentence: its first line without the final dot (and the second,
    where the first ends in a colon), cut where it lists without end, or the kind of error where it says nothing."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    said = " ".join(lines[:2] if lines and lines[0].endswith(":") else lines[:1])
    return shortened(said.rstrip(" ."), _LONGEST_REASON) or type(error).__name__
