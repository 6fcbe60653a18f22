"""Checkpoints that are whole or not there: written under another name, sealed with a manifest, then renamed.

`manifest.json` holds the size and SHA-256 of every file. A checkpoint without one, or with a file that does not match,
is never resumed from; the one before it is.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError

from rl.checkpoint.disk_errors import failure_within, write_failure
from rl.checkpoint.layout import CHECKPOINT, MANIFEST, RANDOM_STATE, RANDOM_STATES, REPLACED, SAVING, STATE
from uniar.errors import UserError
from uniar.reading.files import read_json, reason_of, write_whole

logger = logging.getLogger(__name__)

_WRITER = re.compile(r"(?:\bpp_rank_|_pp_rank_|rng_state_)(\d+)")
"""which process has written a file, in the names of DeepSpeed's and transformers'"""


@contextmanager
def writing(run: Path, step: int) -> Iterator[None]:
    """What happens inside writes the checkpoint of `step`. Raises UserError where the disk is full, the folder cannot
    be written, …: libraries say each in their own way, and torch says little."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if (said := write_failure(error)) is None:
            raise
        require_there(run)
        earlier = "earlier checkpoints are as they were" if checkpoints(run) else "there is no earlier one"
        raise UserError(
            f"the checkpoint of step {step} could not be written to {run} ({_free(run)} free there): {said}; {earlier}."
        ) from error


@contextmanager
def writing_records(run: Path) -> Iterator[None]:
    """A run goes on inside. Raises UserError where something of its folder besides a checkpoint cannot be written:
    metrics, pictures, scores."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if (said := failure_within(error, run)) is None:
            raise
        require_there(run)
        kept = "its checkpoints are as they were" if checkpoints(run) else "it has no checkpoint yet"
        raise UserError(f"{run} cannot be written: {said}; {kept}.") from error


def require_there(run: Path) -> None:
    """Raises UserError where the folder of a run under way is not there any more."""
    if not run.is_dir():
        raise UserError(f"{run} is not there any more: it was renamed or removed while a run was writing to it.")


Files = dict[str, dict[str, Any]]
"""path in a folder → size and SHA-256"""


def listed(folder: Path, *but: str) -> Files:
    """Every file in a folder, without those named; waits until they and the folders are on the disk."""
    found = looked_at(folder, _names(folder, *but))
    _flush_folders(folder)
    return found


def looked_at(folder: Path, names: Sequence[str]) -> Files:
    """These files of a folder, once they are on the disk."""
    with ThreadPoolExecutor() as threads:  # a large run's files are hundreds of GB
        digests = list(threads.map(_digest, (folder / name for name in names)))
    files = {}
    for name, digest in zip(names, digests, strict=True):
        files[name] = {"bytes": (folder / name).stat().st_size, "sha256": digest}
        _flush(folder / name)
    return files


def shares(folder: Path, processes: int) -> list[list[str]]:
    """The files of a checkpoint, divided among the processes that look at them: each has those that it wrote itself, as
    far as their names tell, and the largest of the others go to whoever has least."""
    found: list[list[str]] = [[] for _ in range(processes)]
    held = [0] * processes
    sizes = {name: (folder / name).stat().st_size for name in _names(folder, MANIFEST)}
    written = {name: int(told[1]) for name in sizes if (told := _WRITER.search(name))}
    for name in sorted(sizes, key=lambda name: (name not in written, -sizes[name], name)):
        process = written.get(name, processes)
        if process >= processes:
            process = held.index(min(held))
        found[process].append(name)
        held[process] += sizes[name]
    return found


def seal(folder: Path, files: Files | None = None) -> None:
    """Writes the manifest of a folder whose files are all there, and waits until they are on the disk. files: what
    processes have found of their shares; None: this one looks at all."""
    files = looked_at(folder, _names(folder, MANIFEST)) if files is None else dict(sorted(files.items()))
    write_whole(folder / MANIFEST, json.dumps({"files": files}, indent=2) + "\n")
    _flush_folders(folder)


def fault(folder: Path, manifest: Path | None = None) -> str | None:
    """What is wrong with a checkpoint, in a few words; None for a good one. manifest: where it is not in the folder."""
    manifest = manifest or folder / MANIFEST
    if not manifest.is_file():
        return f"it has no {manifest.name}, so its writing was never finished"
    try:
        listed = read_json(manifest, "manifest")
        files = listed.get("files") if isinstance(listed, dict) else None
        if not files or not isinstance(files, dict):
            return f"its {manifest.name} lists no files"
        for name, expected in files.items():
            path = folder / name
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                return f"its {manifest.name} lists {name}, which is not in its folder"
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
        with ThreadPoolExecutor() as threads:
            for name, digest in zip(files, threads.map(_digest, (folder / name for name in files)), strict=True):
                if digest != files[name]["sha256"]:
                    return f"{name} is not what was written (its SHA-256 differs)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{manifest.name} cannot be read ({reason_of(error)})"
    return None


def saved_step(checkpoint: Path) -> int:
    """The update that a checkpoint was saved after. Raises UserError where its state is not a Trainer's."""
    state = read_json(checkpoint / STATE, "state of the run")
    step = state.get("global_step") if isinstance(state, dict) else None
    if not isinstance(step, int) or not isinstance(state.get("log_history"), list):
        raise UserError(f"{checkpoint / STATE} is not the state of a run: it needs 'global_step' and 'log_history'.")
    return step


def processes_of(checkpoint: Path) -> int | None:
    """How many processes wrote a checkpoint: each leaves its random state. None where there is none."""
    return 1 if (checkpoint / RANDOM_STATE).is_file() else len(list(checkpoint.glob(RANDOM_STATES))) or None


def publish(run: Path, name: str, files: Files | None = None) -> Path:
    """Seals `<run>/.saving/<name>`, with `files` as `seal` takes them, and gives it its place in the run. What is there
    already, such as a damaged one that was passed over, is moved out of the way first and deleted after."""
    written, place = run / SAVING / name, run / name
    seal(written, files)
    if place.exists():
        os.replace(place, run / SAVING / f"{name}{REPLACED}")
    os.replace(written, place)
    _flush(run)
    shutil.rmtree(run / SAVING)
    return place


def checkpoints(run: Path) -> list[Path]:
    """The run's checkpoint folders, oldest step first, good or not."""
    numbered = [
        (int(entry.name.removeprefix(CHECKPOINT)), entry)
        for entry in run.glob(f"{CHECKPOINT}*")
        if entry.is_dir() and entry.name.removeprefix(CHECKPOINT).isdecimal()
    ]
    return [entry for _, entry in sorted(numbered)]


def newest_good(run: Path) -> Path | None:
    """The newest checkpoint that is whole, or None; each newer one that is not gets a warning that says why."""
    for folder in reversed(checkpoints(run)):
        if (wrong := fault(folder)) is None:
            return folder
        logger.warning("%s is passed over: %s.", folder, wrong)
    return None


def rotate(run: Path, keep: int | None, newest: Path) -> None:
    """Deletes the oldest checkpoints so that `keep` are left (None: all), counted back from `newest`, which has just
    been published.

    Later ones count for nothing and stay: the run went on from before them, because they are damaged.
    """
    if keep is None:
        return
    folders = checkpoints(run)
    for folder in folders[: folders.index(newest) + 1][: -max(keep, 1)]:
        if folder.is_symlink():
            folder.unlink()  # someone moved it elsewhere: what is there is theirs
        else:
            shutil.rmtree(folder)


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e9:.3g} GB"
    except OSError:
        return "unknown space"


def _names(folder: Path, *but: str) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in but)
    return sorted(path.relative_to(folder).as_posix() for path in files)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush_folders(folder: Path) -> None:
    for path in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        _flush(path)


def _flush(path: Path) -> None:
    """Waits until a file's contents, or a folder's entries, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
