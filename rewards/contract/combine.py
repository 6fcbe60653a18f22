"""How one reward counts among several: clipped, normalised, weighed by task."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from uniar.errors import UserError

DEFAULT = "default"
"""Key of a weight mapping: the weight for tasks that it does not name, and for prompts without a task."""

Interval = tuple[float | None, float | None]


def term(values: Tensor, clip: Interval | None, normalize: tuple[float, float] | None) -> Tensor:
    """Scores of one reward → what its weight multiplies: first cut to `clip` (None: open on that side), then mapped so
    that `normalize` (low, high) becomes (0, 1); values beyond it go on beyond. NaN stays NaN."""
    if clip is not None:
        values = values.clamp(*clip)
    if normalize is not None:
        low, high = normalize
        values = (values - low) / (high - low)
    return values


def weight_for(weight: float | Mapping[str, float], task: str | None) -> float | None:
    """The weight of a sample of `task`; None where a mapping has none for it: the reward does not apply."""
    if not isinstance(weight, Mapping):
        return weight
    return weight.get(DEFAULT if task is None or task not in weight else task)


def checked_weight(weight: float | Mapping[str, Any], tasks: tuple[str, ...] | None) -> float | dict[str, float]:
    """A weight, or a weight for each task, as floats. Raises UserError whose message lacks its subject."""
    if not isinstance(weight, Mapping):
        return float(weight)
    if not weight:
        raise UserError("is an empty mapping; a number for each task is needed.")
    for task, value in weight.items():
        if not isinstance(task, str) or not _finite(value):
            raise UserError(f"has the entry {task!r}: {value!r}; a task name and a finite number are needed.")
        if tasks is not None and task not in (*tasks, DEFAULT):
            raise UserError(f"names the task {task!r}, which is not among its tasks: {', '.join(tasks)}.")
    if tasks is not None and DEFAULT not in weight and (missing := [task for task in tasks if task not in weight]):
        raise UserError(f"has no number for the task {missing[0]!r}, and no {DEFAULT!r}.")
    return {task: float(value) for task, value in weight.items()}


def checked_interval(value: Sequence[float | None], open_ended: bool) -> Interval:
    """[low, high] as floats; an end may be null if `open_ended`. Raises UserError whose message lacks its subject."""
    ends = "two numbers [low, high]" + (", one of which may be null," if open_ended else "")
    if len(value) != 2 or value[0] is value[1] is None or (None in value and not open_ended):
        raise UserError(f"is {list(value)!r}, {ends} are needed.")
    low, high = value
    if low is not None and high is not None and low >= high:
        raise UserError(f"is {list(value)!r}; the first number must be the smaller one.")
    return low, high


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
