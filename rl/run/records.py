"""The records of a run as they lie on the disk: lines and evaluations. What is damaged is left out, with a warning."""

import json
import logging
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rl.evaluation.understanding import ANSWER_SCORES
from uniar.errors import UserError
from uniar.reading.files import read_json, reason_of

_OF_A_STEP = re.compile(r"step-(\d+)")

logger = logging.getLogger(__name__)


def step_of(file: Path) -> int | None:
    """The update that step-N.* is of; None for a file of another name."""
    number = _OF_A_STEP.fullmatch(file.stem)
    return None if number is None else int(number[1])


def files_of_steps(folder: Path, ending: str) -> dict[int, Path]:
    """Update → step-N with that ending, in order. Files of other names, such as a copy's, are not among them."""
    found = {step: file for file in folder.glob(f"step-*{ending}") if (step := step_of(file)) is not None}
    return dict(sorted(found.items()))


def append_lines(file: Path, *lines: Mapping[str, Any]) -> None:
    """Adds lines of JSON, with null for what JSON has no number for. Raises OSError as writing does."""
    with file.open("a", encoding="utf-8") as opened:
        opened.write("".join(json.dumps(json_ready(line)) + "\n" for line in lines))


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file with a `step` each, in order; none where there is no file.

    A last line that was cut short, as a killed process or a full disk leaves it, is left out; any other line that is
    not such an object, with a warning that names it.
    """
    found = []
    lines = file.read_bytes().split(b"\n") if file.is_file() else []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            values = json.loads(line)
            if not isinstance(values, dict) or type(values.get("step")) is not int:
                raise ValueError("it is not an object with the number of an update under 'step'")
            found.append(values)
        except (ValueError, RecursionError) as error:
            logger.warning("%s, line %d is left out: %s.", file, number, reason_of(error))
    return found


def read_evaluation(file: Path) -> dict[str, Any] | None:
    """The content of evaluations/step-N.json. None, with a warning that says why, for a file that is not whole."""
    try:
        found = read_json(file, "evaluation")
        if not isinstance(found, dict):
            raise UserError(f"the evaluation '{file}' is not an object.")
        answers = found.get("understanding")
        columns = {"total": found["total"]} if "total" in found or answers is None else {}
        columns |= {} if answers is None else {name: answers[name] for name in ANSWER_SCORES}
        for name, column in columns.items():
            if not isinstance(column, list) or not column or not all(isinstance(x, int | float | None) for x in column):
                raise UserError(f"'{name}' of the evaluation '{file}' is not a list of scores.")
        if not all(isinstance(found.get(name, {}), dict) for name in ("understanding", "held_out")):
            raise UserError(f"the evaluation '{file}' has an 'understanding' or 'held_out' that is not an object.")
        return found
    except (UserError, KeyError, TypeError, AttributeError) as error:
        said = reason_of(error) if isinstance(error, UserError) else f"'{file}' is not one ({reason_of(error)})"
        logger.warning("An evaluation is left out: %s.", said)
        return None


def json_ready(value: Any) -> Any:
    """Plain values with null for every number that JSON has no word for: NaN and the infinities."""
    if isinstance(value, Mapping):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def scores_in(column: Iterable[float | None]) -> list[float]:
    """A column of an evaluation, NaN where there is no score, which `json_ready` wrote as null."""
    return [math.nan if score is None else score for score in column]


def samples_of(evaluation: Mapping[str, Any], key: str) -> int:
    """How many samples or questions `key`, total or understanding, of an evaluation is about."""
    return len(evaluation[key] if key == "total" else evaluation[key]["exact_match"])
