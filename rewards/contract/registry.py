"""From the `use:` of a recipe to the class or function it means. Nothing is imported before it is used."""

import functools
import importlib
import importlib.metadata
import inspect
from collections.abc import Callable
from pathlib import Path

from rewards.contract.base import Reward
from rewards.contract.protocol import described
from uniar.errors import UserError, did_you_mean
from uniar.reading.plugins import FORMS, load_plugin, load_plugin_file

_BUILT_IN = {
    "aesthetic": "rewards.models.aesthetic:Aesthetic",
    "clip_score": "rewards.models.clip_score:ClipScore",
    "color": "rewards.pixels.color:Color",
    "compressibility": "rewards.pixels.compressibility:Compressibility",
    "diversity": "rewards.pixels.diversity:Diversity",
    "exact_match": "rewards.written.exact_match:ExactMatch",
    "geneval": "rewards.geneval.reward:GenEval",
    "geneval2": "rewards.vqa.geneval2:GenEval2",
    "hpsv2": "rewards.models.hpsv2:HPSv2",
    "hpsv3": "rewards.models.hpsv3:HPSv3",
    "image_reward": "rewards.models.image_reward:ImageReward",
    "judge_questions": "rewards.judge.questions:JudgeQuestions",
    "ocr": "rewards.ocr.reward:OCR",
    "pairwise": "rewards.judge.pairwise:Pairwise",
    "pickscore": "rewards.models.pickscore:PickScore",
    "preservation": "rewards.pixels.preservation:Preservation",
    "rank": "rewards.rank:Rank",
    "remote": "rewards.remote.reward:Remote",
    "self_vqa": "rewards.vqa.self_vqa:SelfVQA",
    "sharpness": "rewards.pixels.sharpness:Sharpness",
    "text_rendering": "rewards.ocr.text_rendering:TextRendering",
    "vlm_judge": "rewards.judge.vlm_judge:VLMJudge",
    "vqa_score": "rewards.vqa.vqa_score:VQAScore",
}
_registered: dict[str, type[Reward] | Callable] = {}

ENTRY_POINTS = "uniar_rl.rewards"
"""The group of entry points by which an installed package makes its rewards known."""


def reward_names() -> list[str]:
    """All names that `use:` knows, sorted; imports none of the rewards."""
    return sorted({*_BUILT_IN, *_registered, *installed_rewards()})


def origin_of(name: str) -> str:
    """Where a known name comes from: "built in", "registered", or the package that brings it."""
    if name in _registered:
        return "registered"
    return "built in" if name in _BUILT_IN else " and ".join(map(_package_of, installed_rewards()[name]))


def _package_of(entry: importlib.metadata.EntryPoint) -> str:
    assert entry.dist is not None  # as of all that importlib.metadata finds
    return entry.dist.name


@functools.cache
def installed_rewards() -> dict[str, list[importlib.metadata.EntryPoint]]:
    """The entry points of installed packages by name; more than one where packages disagree. A package cannot replace
    a reward of this project."""
    found: dict[str, list[importlib.metadata.EntryPoint]] = {}
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        entries = found.setdefault(entry.name, [])
        if entry.value not in [other.value for other in entries]:  # a package may be on the path twice
            entries.append(entry)
    return {name: entries for name, entries in found.items() if name not in _BUILT_IN}


def register_reward(name: str) -> Callable:
    """Decorator: makes a Reward subclass, or a function of prompts and images, known to recipes as `use: name`.

    Raises UserError when the name is taken by something else.
    """

    def register(target: type[Reward] | Callable) -> type[Reward] | Callable:
        if not isinstance(name, str) or not name or ":" in name:
            raise UserError(f"a reward cannot be registered as {name!r}; a string without ':' is needed.")
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
    (with its cause and line), a name that it lacks, or one that is not a reward.
    """
    if ":" not in use:
        return _resolve_name(use)
    target = load_plugin(use, folder)
    check_target(target)
    return target


def plugin_rewards(source: str) -> list[str]:
    """`file.py:Name` of each reward that a plug-in file defines: its Reward classes (not those it only derives others
    from), and its public functions that take prompts, images or texts. Raises UserError for a file that is missing,
    does not import or has none."""
    module = load_plugin_file(source)
    own = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }
    classes = [value for value in own.values() if inspect.isclass(value) and issubclass(value, Reward)]
    bases = {value for value in classes if value.score is Reward.score and len(_derived(value, classes)) > 1}
    functions = [
        value
        for value in own.values()
        if inspect.isfunction(value) and {"prompts", "images", "texts"} & set(inspect.signature(value).parameters)
    ]
    found = [f"{source}:{name}" for name, value in own.items() if value in classes + functions and value not in bases]
    if not found:
        raise UserError(
            f"plug-in {source} has no reward: no class that derives from rewards.Reward, and no function that takes "
            "prompts, images or texts."
        )
    return found


def _derived(base: type, classes: list[type]) -> list[type]:
    return [value for value in classes if issubclass(value, base)]


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
    if name in installed_rewards():
        return _resolve_installed(name)
    if name.endswith(".py"):
        raise UserError(f"{name!r} does not say which reward of the file to use; write {name}:ClassName.")
    known = ", ".join(reward_names())
    raise UserError(f"there is no reward {name!r}; known: {known} (or {FORMS}).{did_you_mean(name, reward_names())}")


def _resolve_installed(name: str) -> type[Reward] | Callable:
    entry, *others = installed_rewards()[name]
    if others:
        listed = " and ".join(f"{each.value} ({_package_of(each)})" for each in (entry, *others))
        raise UserError(f"the reward name {name!r} is that of {listed}; name the one you mean as package.module:Class.")
    try:
        target = entry.load()
    except (Exception, SystemExit) as error:
        raise UserError(
            f"reward {name!r} of package {_package_of(entry)} does not import: {described(error)}."
        ) from error
    try:
        check_target(target)
    except UserError as error:
        raise UserError(f"package {_package_of(entry)}: {error}") from error
    return target


def _origin(target: str | type | Callable) -> str:
    if isinstance(target, str):
        return target
    return f"{inspect.getsourcefile(target) or target.__module__}:{target.__qualname__}"
