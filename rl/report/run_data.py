"""What a folder tells of a run, or of one evaluation, read once for the page."""

import json
import logging
import math
import time
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from rl.config.grpo_config import flat
from rl.config.recipe import load_recipe
from rl.config.sections import Recipe
from rl.evaluation.evaluate import held_out_otherwise
from rl.records.rows import QUESTION_COLUMNS, read_rows, reward_names
from rl.report.evaluations import evaluation_files, whole_rows
from rl.run.folder import RunFolder
from rl.run.records import files_of_steps, read_lines
from uniar.errors import UserError
from uniar.reading.files import read_object
from uniar.shareable import shareable

logger = logging.getLogger(__name__)

_QUIET_SECONDS = 900
"""without a log line, after which a run that is not finished is taken to have ended"""


@dataclass(frozen=True)
class RunData:
    """A folder as it was when it was read. Nothing of it is trusted: the page escapes all text."""

    path: Path
    lines: list[dict[str, Any]]
    """of metrics.jsonl"""
    evaluations: dict[int, pa.Table]
    """update → rows, without pictures"""
    answers: dict[int, dict[str, list[Any]]]
    """update → columns of the answers to the held-out questions, as far as they are the last ones"""
    questions: pa.Table | None
    groups: dict[int, Path]
    environment: dict[str, Any]
    finished: dict[str, Any] | None
    recipe: Recipe | None
    scores: dict[str, Any] = field(default_factory=dict)
    """scores.json of `uniar-rl evaluate --output`"""
    running: bool = False

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def training(self) -> list[dict[str, Any]]:
        """The lines of updates."""
        return [line for line in self.lines if "loss" in line or "reward" in line]

    @property
    def held_out(self) -> list[dict[str, Any]]:
        """The lines of evaluations."""
        return [line for line in self.lines if line.get("eval_reward") is not None]

    @property
    def steps(self) -> list[int]:
        """The updates that were evaluated on the same samples and with the same rewards as the last one."""
        if not self.evaluations:
            return []
        last = _samples(list(self.evaluations.values())[-1])
        return [step for step, rows in self.evaluations.items() if _samples(rows) == last]

    @property
    def best(self) -> int | None:
        """The evaluated update with the highest mean total."""
        means = {step: mean(self.evaluations[step]["total"].to_pylist()) for step in self.steps}
        means = {step: value for step, value in means.items() if value is not None}
        return max(means, key=lambda step: means[step]) if means else None

    @property
    def updates(self) -> int:
        """Made so far."""
        return max((line["step"] for line in self.training), default=0)

    @property
    def planned(self) -> int | None:
        """Updates that the recipe asks for; None where it goes by epochs."""
        steps = None if self.recipe is None else self.recipe.trainer.get("max_steps")
        return steps if isinstance(steps, int) and steps > 0 else None

    @cached_property
    def seconds(self) -> float:
        """Between the log lines, without the pauses in which the run did not run: those longer than ten times the usual
        one and a quarter of an hour."""
        times = [line["time"] for line in self.lines if isinstance(line.get("time"), int | float)]
        gaps = [after - before for before, after in pairwise(times) if after > before]
        usual = sorted(gaps)[len(gaps) // 2] if gaps else 0.0
        return sum(gap for gap in gaps if gap <= max(10 * usual, _QUIET_SECONDS))

    @property
    def eta(self) -> float | None:
        """Seconds until the last planned update, at the pace so far."""
        if self.planned is None or not self.updates:
            return None
        return self.seconds / self.updates * max(self.planned - self.updates, 0)

    @property
    def otherwise(self) -> str | None:
        """In what held-out scores are set otherwise than training ones; None where they can share an axis."""
        return None if self.recipe is None else held_out_otherwise(self.recipe)

    @property
    def settings(self) -> dict[str, Any]:
        """The recipe, flat, without keys, addresses and paths; of an evaluation what its scores.json says."""
        if self.recipe is not None:
            return flat(shareable(_listed(self.recipe.to_mapping())))
        return flat(
            shareable({name: self.scores[name] for name in ("evaluate", "understanding") if name in self.scores})
        )

    def picture_rows(self, step: int) -> pa.Table:
        """The rows of an evaluation with their pictures."""
        return read_rows(evaluation_files(self.path)[step])


def read_run(path: Path, *, running: bool | None = None) -> RunData:
    """running: whether the run goes on; None: as its last log line suggests. Raises UserError for a folder that neither
    a run nor `uniar-rl evaluate --output` left."""
    folder = RunFolder(path)
    if not path.is_dir():
        raise UserError(f"'{path}' is not a folder; name a run's, or one that `uniar-rl evaluate --output` wrote.")
    scores = read_object(path / "scores.json") if (path / "scores.json").is_file() else {}
    files = evaluation_files(path)
    if not folder.metrics.is_file() and not files and not scores:
        raise UserError(f"'{path}' holds neither a run (metrics.jsonl) nor evaluations (evaluations/step-N.parquet).")
    questions = folder.evaluations / "questions.parquet"
    lines = read_lines(folder.metrics)
    finished = read_object(folder.finished) if folder.finished.is_file() else None
    recent = time.time() - max((line.get("time") or 0.0 for line in lines), default=0.0) < _QUIET_SECONDS
    return RunData(
        path=path,
        lines=lines,
        evaluations={
            step: rows for step, file in files.items() if (rows := whole_rows(file, pictures=False)) is not None
        },
        answers=dict(folder.evaluated("understanding")),
        questions=whole_rows(questions, QUESTION_COLUMNS) if questions.is_file() else None,
        groups=files_of_steps(folder.groups, ".parquet"),
        environment=read_object(folder.environment) if folder.environment.is_file() else {},
        finished=finished,
        recipe=_recipe(folder.config),
        scores=scores,
        running=finished is None and (recent if running is None else running),
    )


def _recipe(file: Path) -> Recipe | None:
    """None where there is none, or, with a warning, one that this version does not take."""
    try:
        return load_recipe(file) if file.is_file() else None
    except UserError as error:
        logger.warning("The page leaves out the recipe: %s", error)
        return None


def mean(values: list[Any]) -> float | None:
    """Of the finite numbers among them; None where there is none."""
    numbers = [value for value in values if isinstance(value, int | float) and math.isfinite(value)]
    return sum(numbers) / len(numbers) if numbers else None


def _samples(rows: pa.Table) -> tuple[Any, ...]:
    columns = (rows[name].combine_chunks() for name in ("set", "id", "sample", "prompt", "seed"))
    return (*columns, tuple(reward_names(rows)))


def _listed(mapping: dict[str, Any]) -> dict[str, Any]:
    """Reward entries under their places, as overrides name them."""
    named = {key: mapping[key] for key in ("rewards", "eval_rewards")}
    return {**mapping, **{key: {str(n): entry for n, entry in enumerate(entries)} for key, entries in named.items()}}


def shown_json(content: Any) -> str:
    """JSON that may stand inside a script element: no text of it ends one, or begins a comment."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character, escape in (
        ("<", "\\u003c"),
        (">", "\\u003e"),
        ("&", "\\u0026"),
        ("\u2028", "\\u2028"),
        ("\u2029", "\\u2029"),
    ):
        text = text.replace(character, escape)
    return text
