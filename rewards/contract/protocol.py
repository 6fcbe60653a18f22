"""Reads what a reward returned, strictly: a score that is not plainly a number is an error, never a guess."""

import inspect
import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uniar.reading import plugins

_ROOM = Path(__file__).parent
_PLUMBING = {
    *(_ROOM / f"{name}.py" for name in ("function", "registry", "spec")),
    *(_ROOM.parent / f"{name}.py" for name in ("attempt", "suite")),
}


class BrokenContract(ValueError):
    """What a reward returned as a whole cannot be matched to the samples."""


Details = Mapping[str, Any]
"""What a reward says about a sample besides its score, for the logs; plain JSON types once it is read."""


def split_details(result: Any) -> tuple[Any, list[Details | None]]:
    """Takes what `Reward.score` returned apart: the scores, and for each sample its details, None where it has none (an
    empty list if no sample has any). A mapping without the key `score` stays as it is: `read_scores` refuses it."""
    if not isinstance(result, list | tuple):
        return result, []
    found = [isinstance(item, Mapping) and "score" in item for item in result]
    scores = [item["score"] if there else item for item, there in zip(result, found, strict=True)]
    details: list[Details | None] = [
        {str(key): _plain(value) for key, value in item.items() if key != "score"} or None if there else None
        for item, there in zip(result, found, strict=True)
    ]
    return scores, details if any(details) else []


def _plain(value: Any) -> Any:
    """A detail as JSON can hold it: mappings, lists, strings, numbers, None; anything else as the string it prints
    as."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, Real):
        number = int(value) if isinstance(value, Integral) else float(value)
        return None if isinstance(number, float) and not math.isfinite(number) else number
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes | bytearray):
        return [_plain(item) for item in value]
    return str(value)


def read_scores(result: Any, count: int) -> tuple[list[float], dict[int, str]]:
    """Reads the scores that `Reward.score` gave for `count` samples.

    Returns the scores as floats, NaN where the reward does not apply, and for each sample whose score is not a finite
    number (a string, a bool, an infinity, an exception in its place) what is wrong with it; its score is NaN too.
    Raises BrokenContract when the result is not a list of `count` scores.
    """
    items = _items(result)
    if len(items) != count:
        raise BrokenContract(f"returned {counted(len(items), 'score')} for {counted(count, 'sample')}")
    scores, faults = [], {}
    for index, item in enumerate(items):
        fault = _fault(item)
        if fault:
            faults[index] = fault
        scores.append(math.nan if item is None or fault else float(item))
    return scores, faults


def _items(result: Any) -> list:
    if isinstance(result, torch.Tensor):
        result = result.detach().cpu()
        if result.dtype == torch.bfloat16:  # numpy, whose scalars .tolist() would give up, has no bfloat16
            result = result.float()
        result = result.numpy()
    if isinstance(result, np.ndarray):
        if result.ndim != 1:
            raise BrokenContract(f"returned an array of shape {result.shape}, one dimension is needed")
        return list(result)
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        raise BrokenContract("returned a coroutine; a score that awaits is declared with 'async def'")
    if isinstance(result, str | bytes) or not isinstance(result, Sequence):
        raise BrokenContract(f"returned {_shown(result)}, a list with one score per sample is needed")
    return [item.item() if isinstance(item, torch.Tensor | np.ndarray) and item.ndim == 0 else item for item in result]


def _fault(item: Any) -> str:
    """What is wrong with one score, "" where nothing is. A bool is not a score: True for "it matched" is most often a
    comparison returned by mistake."""
    if item is None:
        return ""
    if isinstance(item, Exception):
        return f"failed: {str(item).rstrip('.') or type(item).__name__}"
    if isinstance(item, Mapping):
        return f"returned {_shown(item)} without the key 'score', whose number or None is needed"
    if isinstance(item, bool | np.bool_) or not isinstance(item, Real):
        return f"returned {_shown(item)}, a number or None is needed"
    try:
        infinite = math.isinf(float(item))
    except OverflowError:  # an integer or fraction beyond the range of a float
        infinite = True
    return f"returned {_shown(item)}, a finite number or None is needed" if infinite else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def described(error: BaseException) -> str:
    """An exception in one line: its type, what it says, and the file and line of the reward that it came out of."""
    return plugins.described(error, _PLUMBING)


def counted(count: int, noun: str) -> str:
    """ "1 sample", "2 samples"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
