"""What a resumed run may say otherwise than the recipe that its checkpoint was made with.

Most of it counts from the next update on: rewards, rollout, loss and evaluation are read from the recipe, and what the
recipe gives the optimizer is put over its restored state (rl/checkpoint/resume.py). What neither holds for is refused.
"""

import difflib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rl.checkpoint.folders import processes_of
from rl.checkpoint.layout import CONFIG
from rl.config.deepspeed_file import with_deepspeed_settings
from rl.config.recipe import recipe_from_mapping
from rl.config.sections import Recipe
from rl.config.trainer_arguments import TAKEN, trl_arguments
from rl.distributed.engine import Engine
from uniar.errors import UserError
from uniar.reading.settings import nested_settings
from uniar.reading.yaml_files import parse_yaml, read_yaml


def check_resumed(recipe: Recipe, checkpoint: Path) -> None:
    """Raises UserError for the first setting that differs from the checkpoint's and cannot, and for a recipe of the
    checkpoint's that cannot be read.

    checkpoint: a folder that holds the recipe it was made with; one of an older version has none, and is not checked.
    """
    if not (checkpoint / CONFIG).exists():
        return
    before = read_yaml(checkpoint / CONFIG, "checkpoint's recipe")[0]
    if not isinstance(before, Mapping):
        raise UserError(f"{checkpoint / CONFIG} is not a recipe, so what a resumed run may change is not known.")
    now = with_deepspeed_settings(recipe).to_mapping()
    restored = Engine.asked_for(recipe).reads(Engine.that_wrote(checkpoint, processes_of(checkpoint) or 1))
    settled = dict.fromkeys(recipe.settled, "it goes on in the precision that it began in; set the key to that")
    for key, reason in (_fixed(restored) | settled).items():
        old, new = _value(before, key), _value(now, key)
        if old is _ABSENT or new is _ABSENT or not _differ(key, old, new, before, now):
            continue
        raise UserError(
            f"{recipe.where(key)}: {key} is {_shown(new)}, and {checkpoint} was trained with {_shown(old)}, which a "
            f"resumed run cannot change: {reason}."
        )


def print_changes(before: str, after: str) -> None:
    """Says on the console which lines of a run's config a resumed run changes. What an older version had no setting for
    was then as the default is now."""
    with suppress(UserError):  # one that is no recipe any more is compared as it stands
        content = parse_yaml(before, CONFIG)[0]
        before = recipe_from_mapping(content).to_yaml() if isinstance(content, Mapping) else before
    changes = [
        line
        for line in difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
        if line[:1] in "+-" and line[:3] not in ("+++", "---")
    ]
    if changes:
        print("resumed with another recipe:", *changes, sep="\n  ", flush=True)


_ABSENT = object()


def _fixed(restored: bool) -> dict[str, str]:
    """Key -> why it is fixed: of the recipe's sections, and where the optimizer's state is restored, of the arguments
    of `trainer`."""
    found = {key: field.metadata["fixed"] for key, field, _ in nested_settings(Recipe) if field.metadata["fixed"]}
    if not restored:  # weights alone are (rl/checkpoint/resume.py), whatever the optimizer was
        return found
    for kind in ("optimizer", "scheduler"):
        found[f"trainer.deepspeed.{kind}.type"] = f"the restored state is another {kind}'s"
    return found | {f"trainer.{name}": taken.fixed for name, taken in TAKEN.items() if taken.fixed}


def _value(mapping: Mapping[str, Any], key: str) -> Any:
    """The value under a dotted key; what `trainer` leaves out has TRL's default. _ABSENT where a section is null or
    older than the key."""
    section, _, name = key.partition(".")
    if section == "trainer":
        given = mapping.get("trainer") or {}
        name, _, inner = name.partition(".")
        if inner and isinstance(given, Mapping):  # of DeepSpeed's, which an older version kept as the name of a file
            settings = given.get(name)
            kind, _, key = inner.partition(".")
            return (settings.get(kind) or {}).get(key) if isinstance(settings, Mapping) else _ABSENT
        return given.get(name, trl_arguments().get(name, (None, None))[1]) if isinstance(given, Mapping) else _ABSENT
    at: Any = mapping
    for part in key.split("."):
        if not isinstance(at, Mapping) or part not in at:
            return _ABSENT
        at = at[part]
    return at


def _differ(key: str, old: Any, new: Any, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    if key == "model.lora":  # its settings have keys of their own
        return (old is None) != (new is None)
    if key == "model.path":  # the same checkpoint may have moved
        places = [Path(place) for place in (old, new) if isinstance(place, str)]
        return len(places) == 2 and all(place.is_dir() for place in places) and not places[0].samefile(places[1])
    if key == "algorithm.beta":  # the checkpoint holds where the controller has steered it to
        return old != new and all(_value(one, "algorithm.kl_control") not in (None, _ABSENT) for one in (before, now))
    return old != new


def _shown(value: Any) -> str:
    return "null" if value is None else "a mapping" if isinstance(value, dict) else repr(value)
