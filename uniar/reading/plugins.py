"""Plug-ins: Python that a recipe names, `path/to/file.py:name` or `package.module:name`. It runs because the recipe
names it, and not before it is used."""

import hashlib
import importlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Collection
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from uniar.errors import UserError, did_you_mean
from uniar.reading.files import user_path

FORMS = "package.module:name or path/to/file.py:name"

MOVED = {"tiny.shapes:Shapes": "rl.tiny.shapes:Shapes"}
"""What recipes of earlier versions name → what it is called now."""

_STDLIB = sysconfig.get_paths()["stdlib"]


def current_name(use: str) -> str:
    """`use`, or what it is called now where it is a former name of ours and no module of the user's own has that name.
    Runs nothing."""
    return MOVED[use] if use in MOVED and not _can_import(use.partition(":")[0]) else use


def load_plugin(use: str, folder: Path | None = None) -> Any:
    """What `use` names; by its former name too.

    Args:
        folder: where a relative file path is looked up if the current folder has no such file.

    Raises UserError for a file that is missing, a plug-in that does not import (with its cause and line), and a name
    that it lacks.
    """
    source, _, attribute = current_name(use).rpartition(":")
    module = load_plugin_file(source, folder) if source.endswith(".py") else _load_module(source)
    if not hasattr(module, attribute):
        own = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise UserError(f"plug-in {source} has no {attribute!r}.{did_you_mean(attribute, own)}")
    return getattr(module, attribute)


def load_plugin_file(source: str, folder: Path | None = None) -> ModuleType:
    """The module of a file, which runs once per process. Raises UserError as above."""
    candidates = _candidates(source, folder)
    file = next((candidate.resolve() for candidate in candidates if candidate.is_file()), None)
    if file is None:
        looked = " and ".join(str(candidate.absolute()) for candidate in candidates)
        raise UserError(f"plug-in {source} does not exist (looked for {looked}).")
    name = f"_plugin_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None  # as for every .py file
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickling look the module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(f"plug-in {source} does not import: {described(error)}.") from error
    return module


def from_current_folder(use: str, folder: Path) -> str:
    """`use` for a recipe in another folder: a plug-in file found beside this recipe, in `folder`, gets its path from
    the current folder; anything else stays as it is."""
    source, colon, attribute = use.rpartition(":")
    if not colon or not source.endswith(".py"):
        return use
    here, *beside = _candidates(source, folder)
    return use if here.is_file() or not beside or not beside[0].is_file() else f"{beside[0]}:{attribute}"


def described(error: BaseException, plumbing: Collection[Path] = ()) -> str:
    """An exception in one line: its type, what it says, and the file and line of the plug-in that it came out of.

    plumbing: files that only call plug-ins.
    """
    # The innermost line that belongs neither to a library nor to the plumbing: there a plug-in's author will look
    # first.
    skipped = {Path(__file__), *plumbing}
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not _foreign(frame.filename, skipped)]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    said = " ".join(str(error).split())
    said = f": {said if len(said) <= 300 else said[:297] + '...'}" if said else ""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "tiny":
        said += "; UniAR-Tiny's package is called rl.tiny since version 0.2"
    return f"{type(error).__name__}{said}{place}"


def _foreign(filename: str, skipped: Collection[Path]) -> bool:
    return filename.startswith(("<", _STDLIB)) or "site-packages" in filename or Path(filename) in skipped


def _candidates(source: str, folder: Path | None) -> list[Path]:
    """Where a plug-in file may be: from the current folder, else from the recipe's."""
    path = user_path(source)
    return [path] if folder is None or path.is_absolute() else [path, Path(folder) / path]


def _can_import(source: str) -> bool:
    """Whether the module `package.module` has a file. `find_spec` of both names at once would run the package."""
    package, _, module = source.partition(".")
    try:
        folders = getattr(importlib.util.find_spec(package), "submodule_search_locations", None)
    except ValueError:  # a module that something made without a file
        folders = None
    found = folders and PathFinder.find_spec(module, folders)
    return bool(found and found.loader)  # a mere folder, of pictures say, has none


def _load_module(source: str) -> ModuleType:
    if not all(part.isidentifier() for part in source.split(".")):
        raise UserError(f"{source!r} is neither a module nor a .py file; a plug-in is {FORMS}.")
    try:
        return importlib.import_module(source)
    except (Exception, SystemExit) as error:
        raise UserError(f"plug-in {source} does not import: {described(error)}.") from error
