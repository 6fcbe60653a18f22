"""One entry under `rewards:` in a recipe."""

# ruff: noqa: RUF009 (`setting` wraps dataclasses.field, which the rule would let pass)

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rewards.contract.base import Reward
from rewards.contract.combine import DEFAULT, Interval, checked_interval, checked_weight, weight_for
from rewards.contract.function import FunctionReward
from rewards.contract.parameters import bind_parameters
from rewards.contract.protocol import described
from rewards.contract.registry import check_target, resolve
from uniar.errors import UserError
from uniar.reading.settings import checked_values, setting, settings_of


@dataclass(frozen=True)
class RewardSpec:
    """One entry of `rewards` or `eval_rewards`. Keys other than these are the reward's own parameters, see
    docs/rewards.md."""

    use: str | type[Reward] | Callable = setting(
        "A registered name, `package.module:Class`, or `path/to/file.py:Class`.", kind=str
    )
    """in Python also a class or a function"""
    name: str = setting("What metrics call it, unique in its list; null: the name in `use`.", None, kind=str | None)
    weight: float | Mapping[str, float] = setting(
        "Factor of this reward in the sum; 0 only measures, below 0 punishes. A mapping gives one for each task, "
        "`default` for all others; without `default` it applies only to the tasks named.",
        1.0,
    )
    tasks: tuple[str, ...] | None = setting("Tasks that it applies to; null: all.", None)
    clip: Interval | None = setting("[low, high]: where its scores are cut; either may be null.", None)
    normalize: bool | Interval | None = setting(
        "[low, high]: mapped to 0 and 1, after clipping; true: the reward's own usual range.", None
    )
    on_error: Literal["stop", "skip"] = setting(
        "What happens when it still fails after its retries: stop the run, or leave that sample without this reward.",
        "stop",
    )
    retries: int = setting("Further attempts after it failed.", 1, ge=0, le=10)
    offload: bool = setting(
        "Keep its weights in the machine's memory and copy them to the GPU for each decoding and scoring phase, which "
        "frees that memory for rollouts and updates.",
        False,
    )
    params: Mapping[str, Any] = field(default_factory=dict)
    """the reward's own parameters"""
    folder: Path | None = None
    """where a relative plug-in path is looked up if the current folder has no such file"""

    def __post_init__(self) -> None:
        """Raises UserError for a value that is not valid."""
        if not isinstance(self.use, str):
            check_target(self.use)
        elif not self.use:
            raise UserError("use is empty; it names the reward.")
        if not self.name:
            object.__setattr__(self, "name", self._default_name())
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z0-9_.\-]+", self.name):
            raise UserError(f"name is {self.name!r}; letters, digits, '_', '-' and '.' are allowed.")
        given = vars(self) | {"use": str(self.use)}
        for key, value in checked_values(type(self), given, (), {(): f"reward {self.name!r}"}).items():
            if key != "use":
                object.__setattr__(self, key, value)
        if self.tasks == ():
            raise UserError(f"tasks of reward {self.name!r} is [], a list of task names is needed.")
        self._checked("weight", checked_weight, self.tasks)
        if self.clip is not None:
            self._checked("clip", checked_interval, True)
        if self.normalize is False:
            object.__setattr__(self, "normalize", None)
        elif self.normalize is not None and self.normalize is not True:
            self._checked("normalize", checked_interval, False)

    @classmethod
    def from_mapping(cls, entry: Mapping[str, Any] | str, folder: Path | None = None) -> "RewardSpec":
        """From a recipe entry such as `{use: color, weight: 0.5, color: red}`; a bare string means `{use: string}`.
        Keys that are not RewardSpec's own are the reward's parameters."""
        if isinstance(entry, str):
            entry = {"use": entry}
        if not isinstance(entry, Mapping):
            raise UserError(f"{entry!r} is not a reward; a mapping with the key 'use' is needed.")
        if not isinstance(entry.get("use"), str):
            found = f"use is {entry['use']!r}" if "use" in entry else f"the key 'use' is missing in {dict(entry)!r}"
            raise UserError(f"{found}; it names the reward.")
        own = {key: value for key, value in entry.items() if key in RECIPE_KEYS}
        params = {key: value for key, value in entry.items() if key not in RECIPE_KEYS}
        return cls(**own, params=params, folder=folder)

    @property
    def named_tasks(self) -> tuple[str, ...]:
        """The tasks that `tasks` and `weight` speak of."""
        weighed = [task for task in self.weight if task != DEFAULT] if isinstance(self.weight, Mapping) else []
        return tuple(dict.fromkeys([*(self.tasks or ()), *weighed]))

    def weight_for(self, task: str | None) -> float | None:
        """The factor for a sample of `task`; None where this reward does not score it."""
        return weight_for(self.weight, task) if self.tasks is None or task in self.tasks else None

    def range_for(self, reward: Reward) -> tuple[float, float] | None:
        """What is mapped to 0 and 1; None for no normalisation. Raises UserError where `normalize` is True and the
        reward names no usual range."""
        if not isinstance(self.normalize, bool):
            return self.normalize  # type: ignore[return-value]  # __post_init__ has refused an open end
        if reward.usual_range is None:
            raise UserError(
                f"normalize of reward {self.name!r} is true, but it names no usual range; write normalize: [low, high]."
            )
        return reward.usual_range

    def build(self) -> Reward:
        """The reward itself, parameters checked, weights not loaded yet."""
        try:
            target = resolve(self.use, self.folder) if isinstance(self.use, str) else self.use
            if hasattr(target, "beside_decoding"):
                raise UserError("it says beside_decoding, which is called overlaps_decoding since version 0.2.")
            if isinstance(target, type) and issubclass(target, Reward):
                taken = [key for key in RECIPE_KEYS if key in inspect.signature(target).parameters]
                if taken:
                    raise UserError(f"its parameter {taken[0]!r} is a key of every reward; rename it in the class.")
                nested = {key: self._nested(self.params[key]) for key in target.nested if key in self.params}
                reward: Reward = target(**bind_parameters(target, {**self.params, **nested}, elsewhere=RECIPE_KEYS))
            else:
                reward = FunctionReward(target, self.params, RECIPE_KEYS)
        except UserError as error:
            raise UserError(f"reward {self.name!r}: {error}") from error
        except (Exception, SystemExit) as error:  # the reward's own __init__ refused what it was given
            raise UserError(
                f"reward {self.name!r} cannot be built from {dict(self.params)}: {described(error)}"
            ) from error
        reward.name = str(self.name)  # which __post_init__ has set
        return reward

    def _nested(self, entry: Any) -> Reward:
        """The reward that stands within this one's entry."""
        spec = RewardSpec.from_mapping(entry, self.folder)
        if not isinstance(entry, str) and (keys := [key for key in entry if key in RECIPE_KEYS and key != "use"]):
            raise UserError(f"{keys[0]} stands within the reward of {self.name!r}; it belongs to the entry around it.")
        return spec.build()

    def _checked(self, key: str, check: Callable, *arguments: Any) -> None:
        try:
            object.__setattr__(self, key, check(getattr(self, key), *arguments))
        except UserError as error:
            raise UserError(f"{key} of reward {self.name!r} {error}") from error

    def _default_name(self) -> str:
        if isinstance(self.use, str):
            return self.use.rpartition(":")[2] if ":" in self.use else Path(self.use).stem
        return getattr(self.use, "__name__", type(self.use).__name__)


RECIPE_KEYS = tuple(field.name for field in settings_of(RewardSpec))
"""Keys that every reward of a recipe has; all others are the reward's own parameters."""
