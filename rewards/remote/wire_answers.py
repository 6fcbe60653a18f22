"""What a reward server answers: JSON, in the order of the samples that it was sent.

    {"scores": {"color": [0.81], "ocr": [null]},
     "failures": {"color": {}, "ocr": {}},
     "details": {"color": {}, "ocr": {}}}

A score is null where the reward does not apply, or failed: then `failures` has the sample's index as a string, and why.
"""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class BadAnswer(ValueError):
    """A server answered with something from which no scores can be read."""


class ServedFailure(RuntimeError):
    """A reward failed on a sample, at the server or by what the server answered for it."""


@dataclass
class Column:
    """One reward's results for B samples: scores (NaN: none), and by sample, why it failed and what else it said."""

    scores: list[float]
    failures: dict[int, str] = field(default_factory=dict)
    details: dict[int, Mapping[str, Any]] = field(default_factory=dict)


def encode_answer(columns: Mapping[str, Column]) -> bytes:
    """The body of an answer. Details are as `score_samples` leaves them, in JSON's own types."""
    content = {
        "scores": {
            name: [None if math.isnan(score) else score for score in column.scores] for name, column in columns.items()
        },
        "failures": {name: _by_text(column.failures) for name, column in columns.items()},
        "details": {name: _by_text(column.details) for name, column in columns.items()},
    }
    return json.dumps(content, allow_nan=False).encode("ascii")


def read_answer(content: bytes, reward: str, count: int) -> list[Any]:
    """What `Reward.score` returns for `count` samples: a number, None, a mapping with `score` where there are details,
    or a ServedFailure for each sample without a usable score. Raises BadAnswer where not even that can be told.
    """
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"the answer is not JSON: {error}") from error
    scores = _entry(answer, "scores", reward, list)
    if len(scores) != count:
        raise BadAnswer(f"the answer has {len(scores)} scores for {count} samples")
    failures = _entry(answer, "failures", reward, dict)
    details = _entry(answer, "details", reward, dict)
    return [_result(scores[row], failures.get(str(row)), details.get(str(row))) for row in range(count)]


def _entry(answer: Any, key: str, reward: str, kind: type) -> Any:
    rewards = answer.get(key) if isinstance(answer, dict) else None
    entry = rewards.get(reward) if isinstance(rewards, dict) else None
    if not isinstance(entry, kind):
        raise BadAnswer(f"the answer has no {key} of reward {reward!r}: {shown(answer)}")
    return entry


def _result(score: Any, failure: Any, details: Any) -> Any:
    if failure is not None:
        return ServedFailure(
            failure if isinstance(failure, str) else f"for a reason that is not a string: {shown(failure)}"
        )
    if score is not None:
        number = isinstance(score, int | float) and not isinstance(score, bool)
        # JSON's integers have no end, a float has: compared, because converting such a one raises.
        if not number or not -sys.float_info.max <= score <= sys.float_info.max:
            return ServedFailure(f"the server answered {shown(score)}, a finite number or null is needed")
    return score if not isinstance(details, dict) else {**details, "score": score}


def _by_text(entries: Mapping[int, Any]) -> dict[str, Any]:
    return {str(row): entry for row, entry in entries.items()}


def shown(value: Any) -> str:
    """A value for a message, short however large it is, in characters that can be sent."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} entries"
    text = ascii(value) if not isinstance(value, int) or abs(value) < 10**20 else "a huge number"
    return text if len(text) <= 60 else text[:57] + "..."
