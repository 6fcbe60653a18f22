"""Checkpoints that are whole or not there: written under another name, sealed with a manifest, then renamed.

`manifest.json` holds the size and SHA-256 of every file. A checkpoint without one, or with a file that does not match,
is never resumed from; the one before it is.
"""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
PREFIX = "checkpoint-"
SAVING = ".saving"
"""Folder, inside the run's, in which a checkpoint is written."""


def seal(folder: Path) -> None:
    """Writes the manifest of a folder whose files are all there, and waits until they are on the disk."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST):
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
        _flush(path)
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"files": files}, indent=2) + "\n")
    _flush(manifest)


def fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; None for a good one."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return f"it has no {MANIFEST}, so its writing was never finished"
    try:
        files = json.loads(manifest.read_text())["files"]
        for name, expected in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}"
            if _digest(path) != expected["sha256"]:
                return f"{name} is not what was written (its SHA-256 differs)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


def publish(run: Path, name: str) -> Path:
    """Seals `<run>/.saving/<name>` and gives it its place in the run. One that is there already is replaced."""
    written, place = run / SAVING / name, run / name
    seal(written)
    if place.exists():
        shutil.rmtree(place)
    os.replace(written, place)
    _flush(run)
    shutil.rmtree(run / SAVING)
    return place


def checkpoints(run: Path) -> list[Path]:
    """The run's checkpoint folders, oldest step first, good or not."""
    numbered = [
        (int(entry.name.removeprefix(PREFIX)), entry)
        for entry in run.glob(f"{PREFIX}*")
        if entry.is_dir() and entry.name.removeprefix(PREFIX).isdigit()
    ]
    return [entry for _, entry in sorted(numbered)]


def newest_good(run: Path) -> Path | None:
    """The newest checkpoint that is whole, or None; each newer one that is not gets a warning that says why."""
    for folder in reversed(checkpoints(run)):
        if (wrong := fault(folder)) is None:
            return folder
        logger.warning("%s is passed over: %s.", folder, wrong)
    return None


def rotate(run: Path, keep: int | None) -> None:
    """Deletes the oldest good checkpoints beyond `keep` (None: keeps all). Only ever called with a good newest one."""
    if keep is None:
        return
    for folder in checkpoints(run)[: -max(keep, 1)]:
        shutil.rmtree(folder)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Waits until a file's contents, or a folder's entries, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
