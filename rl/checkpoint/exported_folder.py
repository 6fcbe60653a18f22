"""The folder of an exported model: all there or not there, and nothing of another kind is ever replaced by it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rl.checkpoint.disk_errors import write_failure
from rl.checkpoint.folders import fault
from rl.checkpoint.layout import MODEL_CONFIG, PARTIAL, REPLACED, STATE
from uniar.errors import UserError
from uniar.reading.files import writing


@contextmanager
def appearing(target: Path, sign: str) -> Iterator[Path]:
    """A folder to write to that becomes `target` when all is there. Only a folder with the file `sign` is replaced, and
    only if it is not a training checkpoint. Raises UserError where it cannot be written."""
    partial, replaced = _beside(target)
    if not target.exists() and (replaced / sign).is_file():  # killed between two renamings: the only whole one
        with writing(target):
            replaced.rename(target.resolve())
    require_replaceable(target, sign)
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        _rename(target)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if (said := write_failure(error)) is not None:
            raise UserError(f"{target} cannot be written: {said}.") from error
        raise


def finish_appearing(target: Path, manifest: Path) -> bool:
    """Whether a process was killed when all of `target` was written, as `manifest` lists it, and did not have its name
    yet; it has then. Only for who holds the place: it may be a live process that is about to do the same."""
    if not _beside(target)[0].is_dir() or fault(_beside(target)[0], manifest) is not None:
        return False
    _rename(target)
    return True


def _beside(target: Path) -> tuple[Path, Path]:
    """What is to become `target`, and what was it before."""
    target = target.resolve()  # a link to another disk stays one
    return target.with_name(f"{target.name}{PARTIAL}"), target.with_name(f"{target.name}{REPLACED}")


def _rename(target: Path) -> None:
    target, (partial, replaced) = target.resolve(), _beside(target)
    if target.exists():  # renamed first: killed while it is deleted, it would be half of a checkpoint
        target.rename(replaced)
    try:
        partial.rename(target)
    except OSError:
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def require_replaceable(target: Path, sign: str = MODEL_CONFIG) -> None:
    """Raises UserError for a folder that an export must not replace."""
    if target.exists() and not (target / sign).is_file():
        raise UserError(f"{target} exists and is not a checkpoint folder; choose another output folder.")
    if (target / STATE).exists():
        raise UserError(f"{target} is a training checkpoint, which an export must not replace; choose another folder.")
