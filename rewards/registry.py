"""From the `use:` of a recipe to the class or function it means. Nothing is imported before it is used."""

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from rewards.base import Reward
from rewards.contract import described
from uniar.errors import UserError, did_you_mean

_BUILT_IN = {
    "aesthetic": "rewards.aesthetic:Aesthetic",
    "clip_score": "rewards.clip_score:ClipScore",
    "color": "rewards.color:Color",
    "compressibility": "rewards.compressibility:Compressibility",
    "diversity": "rewards.diversity:Diversity",
    "geneval": "rewards.geneval:GenEval",
    "hpsv2": "rewards.hpsv2:HPSv2",
    "image_reward": "rewards.image_reward:ImageReward",
    "ocr": "rewards.ocr:OCR",
    "pickscore": "rewards.pickscore:PickScore",
    "self_vqa": "rewards.self_vqa:SelfVQA",
    "sharpness": "rewards.sharpness:Sharpness",
    "vqa_score": "rewards.vqa_score:VQAScore",
}
_registered: dict[str, type[Reward] | Callable] = {}

_FORMS = "a registered name, package.module:Class or path/to/file.py:Class"


def reward_names() -> list[str]:
    """All names that `use:` knows, sorted; imports none of the rewards."""
    return sorted({*_BUILT_IN, *_registered})


def register_reward(name: str) -> Callable:
    """Decorator: makes a Reward subclass, or a function of prompts and images, known to recipes as `use: name`.

    Raises UserError when the name is taken by something else.
    """

    def register(target: type[Reward] | Callable) -> type[Reward] | Callable:
        if not isinstance(name, str) or not name or ":" in name:
            raise UserError(f"a reward cannot be registered as {name!r}; a text without ':' is needed.")
        check_target(target)
        taken = _BUILT_IN.get(name) or _registered.get(name)
        # The same definition run again (a notebook cell, a file loaded twice) replaces itself.
        if taken is not None and _origin(taken) != _origin(target):
            raise UserError(f"the reward name {name!r} is taken by {_origin(taken)}; register under another one.")
        _registered[name] = target
        return target

    return register


def resolve(use: str, folder: Path | None = None) -> type[Reward] | Callable:
    """The class or function that `use` names.

    Args:
        use: a registered name, `package.module:Name`, or `path/to/file.py:Name`.
        folder: where a relative file path is looked up if the current folder has no such file.

    Raises UserError for an unknown name (with the nearest), a file that is missing, a plug-in that does not import
    (with its cause and line), a name that it lacks, or one that is no reward.
    """
    source, colon, attribute = use.rpartition(":")
    if not colon:
        return _resolve_name(use)
    if source.endswith(".py"):
        module, where = _load_file(source, folder)
    else:
        module, where = _load_module(source)
    if not hasattr(module, attribute):
        own = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise UserError(f"plug-in {where} has no {attribute!r}.{did_you_mean(attribute, own)}")
    target = getattr(module, attribute)
    check_target(target)
    return target


def check_target(target: object) -> None:
    """Raises UserError unless `target` is a Reward subclass with a score, or a function."""
    if inspect.isclass(target):
        if not issubclass(target, Reward):
            raise UserError(f"{target.__name__} is not a reward: it must derive from rewards.Reward.")
        if target.score is Reward.score:
            raise UserError(f"{target.__name__} has no score method.")
    elif not callable(target):
        raise UserError(f"{target!r} is not a reward: a class deriving from rewards.Reward or a function is needed.")


def _resolve_name(name: str) -> type[Reward] | Callable:
    if name in _registered:
        return _registered[name]
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if name.endswith(".py"):
        raise UserError(f"{name!r} does not say which reward of the file to use; write {name}:ClassName.")
    known = ", ".join(reward_names())
    raise UserError(f"there is no reward {name!r}; known: {known} ({_FORMS}).{did_you_mean(name, reward_names())}")


def _load_file(source: str, folder: Path | None) -> tuple[ModuleType, str]:
    path = Path(source).expanduser()
    candidates = [path] if folder is None or path.is_absolute() else [path, Path(folder) / path]
    file = next((candidate.resolve() for candidate in candidates if candidate.is_file()), None)
    if file is None:
        looked = " and ".join(str(candidate.absolute()) for candidate in candidates)
        raise UserError(f"plug-in {source} does not exist (looked for {looked}).")
    name = f"_reward_plugin_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name], source
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickling look the module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(f"plug-in {source} does not import: {described(error)}.") from error
    return module, source


def _load_module(source: str) -> tuple[ModuleType, str]:
    if not all(part.isidentifier() for part in source.split(".")):
        raise UserError(f"{source!r} is neither a module nor a .py file; 'use' takes {_FORMS}.")
    try:
        return importlib.import_module(source), source
    except (Exception, SystemExit) as error:
        raise UserError(f"plug-in {source} does not import: {described(error)}.") from error


def _origin(target: str | type | Callable) -> str:
    if isinstance(target, str):
        return target
    return f"{inspect.getsourcefile(target) or target.__module__}:{target.__qualname__}"
