"""One entry under `rewards:` in a recipe."""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewards.contract.base import Reward
from rewards.contract.combine import DEFAULT, Interval, checked_interval, checked_weight, weight_for
from rewards.contract.function import FunctionReward
from rewards.contract.parameters import RECIPE_KEYS, bind_parameters
from rewards.contract.protocol import described
from rewards.contract.registry import check_target, resolve
from uniar.errors import UserError

MAX_RETRIES = 10


@dataclass(frozen=True)
class RewardSpec:
    """Which reward, and how it counts. Raises UserError for a value that is not valid.

    Attributes:
        use: a registered name, `package.module:Class`, `path/to/file.py:Class`; in Python also a class or a function.
        name: what the metrics call it; unique in a suite. Default: the registered, class or function name.
        weight: its factor in the advantage. 0 only measures; a negative one punishes. A mapping gives a factor for each
            task; it then scores only the tasks named there, unless the entry "default" speaks for all others.
        tasks: the tasks it scores; None for all samples.
        clip: (low, high), where scores are cut before they count; either may be None.
        normalize: (low, high), mapped to 0 and 1 after clipping; True for the reward's own usual range.
        on_error: "stop" ends the run when it fails, "skip" leaves the samples that failed without this score.
        retries: further attempts after it raised, 0 to 10.
        offload: whether its weights wait on the CPU while nothing is scored.
        params: the reward's own parameters.
        folder: where a relative plug-in path is looked up if the current folder has no such file.
    """

    use: str | type[Reward] | Callable
    name: str = ""
    weight: float | Mapping[str, float] = 1.0
    tasks: tuple[str, ...] | None = None
    clip: Interval | None = None
    normalize: Interval | bool | None = None
    on_error: str = "stop"
    retries: int = 1
    offload: bool = False
    params: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    def __post_init__(self):
        if not isinstance(self.use, str):
            check_target(self.use)
        elif not self.use:
            raise UserError("use is empty; it names the reward.")
        if not self.name:
            object.__setattr__(self, "name", self._default_name())
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z0-9_.\-]+", self.name):
            raise UserError(f"name is {self.name!r}; letters, digits, '_', '-' and '.' are allowed.")
        if self.on_error not in ("stop", "skip"):
            raise UserError(f"on_error of reward {self.name!r} is {self.on_error!r}, 'stop' or 'skip' is needed.")
        whole = isinstance(self.retries, int) and not isinstance(self.retries, bool)
        if not whole or not 0 <= self.retries <= MAX_RETRIES:
            raise UserError(
                f"retries of reward {self.name!r} is {self.retries!r}, a whole number from 0 to {MAX_RETRIES} is valid."
            )
        if not isinstance(self.offload, bool):
            raise UserError(f"offload of reward {self.name!r} is {self.offload!r}, true or false is needed.")
        if self.tasks is not None:
            listed = isinstance(self.tasks, list | tuple) and len(self.tasks) > 0
            if not listed or not all(isinstance(task, str) for task in self.tasks):
                raise UserError(f"tasks of reward {self.name!r} is {self.tasks!r}, a list of task names is needed.")
            object.__setattr__(self, "tasks", tuple(self.tasks))
        self._checked("weight", checked_weight, self.tasks)
        if self.clip is not None:
            self._checked("clip", checked_interval, True)
        if self.normalize is False:
            object.__setattr__(self, "normalize", None)
        elif self.normalize is not None and self.normalize is not True:
            self._checked("normalize", checked_interval, False)

    @classmethod
    def from_mapping(cls, entry: Mapping[str, Any] | str, folder: Path | None = None) -> "RewardSpec":
        """From a recipe entry such as `{use: color, weight: 0.5, color: red}`; a bare text means `{use: text}`. Keys
        that are not RewardSpec's own are the reward's parameters."""
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
        if self.normalize is not True:
            return self.normalize
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
            if inspect.isclass(target):
                taken = [key for key in RECIPE_KEYS if key in inspect.signature(target).parameters]
                if taken:
                    raise UserError(f"its parameter {taken[0]!r} is a key of every reward; rename it in the class.")
                reward = target(**bind_parameters(target, self.params))
            else:
                reward = FunctionReward(target, self.params)
        except UserError as error:
            raise UserError(f"reward {self.name!r}: {error}") from error
        except (Exception, SystemExit) as error:  # the reward's own __init__ refused what it was given
            raise UserError(
                f"reward {self.name!r} cannot be built from {dict(self.params)}: {described(error)}"
            ) from error
        reward.name = self.name
        return reward

    def _checked(self, key: str, check: Callable, *arguments: Any) -> None:
        try:
            object.__setattr__(self, key, check(getattr(self, key), *arguments))
        except UserError as error:
            raise UserError(f"{key} of reward {self.name!r} {error}") from error

    def _default_name(self) -> str:
        if isinstance(self.use, str):
            return self.use.rpartition(":")[2] if ":" in self.use else Path(self.use).stem
        return getattr(self.use, "__name__", type(self.use).__name__)
