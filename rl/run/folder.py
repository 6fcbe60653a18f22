"""The folder of a run, whose files rl/checkpoint/layout.py names, and that it belongs to one run only."""

import dataclasses
import json
import logging
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from rewards import RewardTable
from rl.checkpoint import layout
from rl.checkpoint.folder_lock import FolderLock
from rl.checkpoint.folders import checkpoints
from rl.checkpoint.resumed_recipe import print_changes
from rl.config.deepspeed_file import with_deepspeed_settings
from rl.config.sections import Recipe
from rl.data.questions import QuestionRecord
from rl.evaluation.evaluate import Evaluation
from rl.evaluation.understanding import ANSWER_SCORES, Understanding
from rl.records.rows import question_rows, write_rows, write_table
from rl.run.data_state import measured_on
from rl.run.records import (
    append_lines,
    files_of_steps,
    json_ready,
    read_evaluation,
    read_lines,
    samples_of,
    scores_in,
    step_of,
)
from uniar.errors import UserError
from uniar.reading.files import read_json, remove_unfinished, write_whole
from uniar.reading.plugins import from_current_folder

logger = logging.getLogger(__name__)


class RunFolder:
    """Paths and records of a run. Only the main process writes."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / layout.CONFIG
        self.metrics = self.path / layout.METRICS
        self.details = self.path / layout.DETAILS
        self.plot = self.path / layout.PLOT
        self.samples = self.path / layout.SAMPLES
        self.evaluations = self.path / layout.EVALUATIONS
        self.groups = self.path / layout.GROUPS
        self.environment = self.path / layout.ENVIRONMENT
        self.report = self.path / layout.REPORT
        self.best = self.path / layout.BEST
        self.best_step = self.path / layout.BEST_STEP
        self.final = self.path / layout.FINAL
        self.finished = self.path / layout.FINISHED
        self.data = self.path / layout.DATA

    @classmethod
    def claim(cls, recipe: Recipe, *, resume: bool = False, lock: FolderLock | None = None) -> "RunFolder":
        """The run's folder, made if need be, with the resolved recipe in it.

        A folder that holds a run already is taken only to resume it; what the recipe now says otherwise is printed and
        becomes its config. Where the recipe leaves the name to us, a new run takes the first unused of NAME, NAME-2,
        NAME-3, …, and a resumed one the last used. lock: takes the folder, so that no other run may.
        """
        folder = cls.chosen(recipe, resume=resume)
        folder.take(lock)
        folder.write_config(recipe)
        return folder

    @classmethod
    def chosen(cls, recipe: Recipe, *, resume: bool = False) -> "RunFolder":
        """Which folder the recipe means. Raises UserError for one that holds a run which is not to be resumed."""
        path, following = Path(recipe.output_dir), Path(recipe.output_dir)
        if recipe.names_its_folder_itself:
            following = path
        else:
            number = 1
            while (following / layout.CONFIG).exists():
                number += 1
                path, following = following, Path(f"{recipe.output_dir}-{number}")
        folder = cls(path if resume else following)
        if folder.config.exists() and not resume:
            raise UserError(
                f"{folder.path} holds another run ({layout.CONFIG} is there); "
                "choose another output_dir, or resume that run with --resume."
            )
        return folder

    @property
    def was_begun(self) -> bool:
        """Whether a run has ever taken this folder."""
        return self.config.exists() or (self.path / layout.LOCK).exists()

    def take(self, lock: FolderLock | None = None) -> None:
        """Makes the folder if need be, and keeps other runs out of it. Raises UserError where that cannot be."""
        try:
            for part in (self.samples, self.evaluations, self.groups):
                part.mkdir(parents=True, exist_ok=True)
            if lock is not None:
                lock.take(self.path)
        except OSError as error:
            raise self._unwritable(error) from error

    def write_config(self, recipe: Recipe) -> None:
        """Writes the resolved recipe; says on the console what was another way before."""
        resolved = self.resolved(recipe).to_yaml()
        try:
            if self.config.exists():
                before = self.config.read_text(encoding="utf-8", errors="replace")
                if before != resolved and resolved.startswith(before):
                    logger.warning("%s was cut short; it is written anew.", self.config)
                else:
                    print_changes(before, resolved)
            write_whole(self.config, resolved)
        except OSError as error:
            raise self._unwritable(error) from error

    def write_data(self, data: dict[str, dict[str, Any]]) -> None:
        """Writes what the prompts and questions of the run are (rl/run/data_state.py)."""
        self._write_json(self.data, data)

    def write_environment(self, environment: dict[str, Any]) -> None:
        """Writes what the run, or its part since it was resumed, is run on (rl/records/environment.py)."""
        self._write_json(self.environment, environment)

    def _write_json(self, file: Path, content: dict[str, Any]) -> None:
        try:
            write_whole(file, json.dumps(content, indent=2) + "\n")
        except OSError as error:
            raise self._unwritable(error) from error

    def resolved(self, recipe: Recipe) -> Recipe:
        """The recipe as the config of this folder has it."""
        return dataclasses.replace(
            with_deepspeed_settings(recipe),
            output_dir=str(self.path),
            rewards=_from_current_folder(recipe, recipe.rewards),
            eval_rewards=_from_current_folder(recipe, recipe.eval_rewards),
            evaluate=dataclasses.replace(
                recipe.evaluate,
                sets={
                    name: dataclasses.replace(one, rewards=one.rewards and _from_current_folder(recipe, one.rewards))
                    for name, one in recipe.evaluate.sets.items()
                },
            ),
        )

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"output_dir {self.path} cannot be written: {error}.")

    def release_if_unused(self) -> None:
        """Lets another run have the folder when this one stopped before it had anything to keep."""
        if self.path.is_dir() and not self.metrics.exists() and not checkpoints(self.path):
            self.config.unlink(missing_ok=True)

    def append(self, step: int, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl; a value that is not a finite number becomes null, as JSON has no NaN."""
        append_lines(self.metrics, {"step": step, **values})

    def read(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl, in order; none before the first was written (see rl/run/records.py)."""
        return read_lines(self.metrics)

    def copy_records(self, checkpoint: Path) -> None:
        """Puts the recipe, the metrics so far and what the data was into a checkpoint that is being written, so that it
        says by itself what it is and a run can go on from it alone."""
        for file in (self.config, self.metrics, self.data):
            if file.exists():
                shutil.copyfile(file, checkpoint / file.name)

    def go_back_to(self, checkpoint: Path | None, step: int) -> None:
        """Makes the records those of a run that has just saved `checkpoint` after update `step`, or with None of one
        that has not begun.

        Metrics come from the checkpoint: those are on the disk since it is, the run's own last lines may have been lost
        with the machine.
        """
        if checkpoint is not None and (checkpoint / self.metrics.name).exists():
            write_whole(self.metrics, (checkpoint / self.metrics.name).read_bytes())
        self.forget_after(-1 if checkpoint is None else step)

    def forget_after(self, step: int) -> None:
        """Drops the lines, evaluations, pictures and the best model of later steps, which a resumed run makes again, or
        not at all; and what is damaged or was never finished, with a warning."""
        remove_unfinished(self.path, "*", "*/*")
        for file in (file for part in (self.evaluations, self.samples, self.groups) for file in part.iterdir()):
            number = step_of(file)
            if number is None or not file.is_file():
                continue
            if number > step or (file.match(f"{layout.EVALUATIONS}/step-*.json") and read_evaluation(file) is None):
                file.unlink()
        self.finished.unlink(missing_ok=True)  # final/ is written again at the end
        self._forget_best_after(step)
        for file in (self.metrics, self.details):
            self._keep_lines(file, lambda line: line["step"] <= step)

    def _forget_best_after(self, step: int) -> None:
        if not self.best_step.exists():
            return
        try:
            if int(read_json(self.best_step)["step"]) <= step:
                return
            shutil.rmtree(self.best, ignore_errors=True)
        except (ValueError, TypeError, KeyError, OverflowError):
            logger.warning("%s does not say which update best/ is of; it is dropped, best/ stays.", self.best_step)
        self.best_step.unlink()

    def _keep_lines(self, file: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
        if file.exists():
            write_whole(file, "".join(json.dumps(line) + "\n" for line in read_lines(file) if keep(line)))

    def note_best(self, step: int) -> None:
        """Says which update the model in best/ is of."""
        write_whole(self.best_step, json.dumps({"step": step}) + "\n")

    def append_details(self, step: int, prompts: Sequence[str], table: RewardTable) -> None:
        """Lines of details.jsonl for B samples: their scores, and what rewards say. None where no reward does."""
        lines = []
        for row, prompt in enumerate(prompts if table.details else ()):
            scores = dict(zip(table.names, table.values[row].tolist(), strict=True))
            said = {name: rows[row] for name, rows in table.details.items() if rows[row]}
            lines.append({"step": step, "prompt": prompt, "scores": scores, "details": said})
        if lines:
            append_lines(self.details, *lines)

    def save_evaluation(self, step: int, evaluation: Evaluation | None, understanding: Understanding | None) -> None:
        """Totals and scores of all samples, in the order of the prompts: what a paired comparison needs; the answers in
        the order of the questions. The two may come one after the other."""
        file = self._evaluation(step)
        found: dict[str, Any] = (read_evaluation(file) if file.exists() else None) or {}
        found |= self._held_out()
        if evaluation is not None:
            columns = dict(zip(evaluation.names, evaluation.values.T.tolist(), strict=True))
            found |= {"total": evaluation.totals.tolist(), **columns}
            if evaluation.rows is not None:
                write_rows(self.rows(step), evaluation.rows, step)
        if understanding is not None:
            found["understanding"] = understanding.columns()
        file.parent.mkdir(exist_ok=True)
        write_whole(file, json.dumps(json_ready(found)) + "\n")

    def save_questions(self, questions: Sequence[QuestionRecord], picture_size: int | None) -> None:
        """The held-out questions, in the order of their answers."""
        write_table(self.evaluations / "questions.parquet", question_rows(questions, picture_size))

    def save_groups(self, step: int, rows: pa.Table) -> None:
        """Samples that update `step` is trained on, with their advantages."""
        write_rows(self.groups / f"step-{step:06d}.parquet", rows, step)

    def evaluated_at(self, step: int) -> tuple[bool, bool]:
        """Whether the held-out prompts have been drawn, and the held-out questions asked, after update `step`; not, if
        they were others."""
        file, lines = self._evaluation(step), [line for line in self.read() if line["step"] == step]
        found = (read_evaluation(file) if file.exists() else None) or {}
        said = {"total": "eval_reward", "understanding": "eval_understanding/exact_match"}
        if found.get("held_out") != self._held_out().get("held_out"):
            found = {}
        drawn, asked = (part in found and any(key in line for line in lines) for part, key in said.items())
        return drawn, asked

    def _held_out(self) -> dict[str, Any]:
        """What an evaluation's file says of what it was made on; nothing where the run's folder does not."""
        if not self.data.is_file():
            return {}
        return {"held_out": measured_on(read_json(self.data, "record of a run's data"))}

    def forget_evaluation_at(self, step: int) -> None:
        """Drops the lines and files of an evaluation that is to be made again."""
        for file in (self._evaluation(step), self.rows(step)):
            file.unlink(missing_ok=True)
        self._keep_lines(
            self.metrics, lambda line: line["step"] != step or not any(key.startswith("eval_") for key in line)
        )

    def rows(self, step: int) -> Path:
        """The file of every held-out sample of an evaluation."""
        return self.evaluations / f"step-{step:06d}.parquet"

    def _evaluation(self, step: int) -> Path:
        return self.evaluations / f"step-{step:06d}.json"

    def evaluated_totals(self) -> dict[int, Tensor]:
        """Step → (N,) totals of its evaluation."""
        return {step: torch.tensor(scores_in(totals), dtype=torch.float64) for step, totals in self.evaluated("total")}

    def evaluated_understanding(self) -> dict[int, dict[str, float]]:
        """Step → means of the held-out questions: exact_match, p_answer, p_token."""
        return {
            step: {name: statistics.fmean(scores_in(columns[name])) for name in ANSWER_SCORES}
            for step, columns in self.evaluated("understanding")
        }

    def evaluated(self, key: str, *, whole: bool = False) -> Iterator[tuple[int, Any]]:
        """Step by step what evaluations have under `key`, total or understanding, or with `whole` all of those that
        have it; of the evaluations that were made as the last one, on the same data, so that they can be compared."""
        found = {}
        for step, file in files_of_steps(self.evaluations, ".json").items():
            evaluation = read_evaluation(file)
            if evaluation is not None and key in evaluation:
                found[step] = evaluation
        data = {step: evaluation.get("held_out", {}).get(key) for step, evaluation in found.items()}
        samples = {step: samples_of(evaluation, key) for step, evaluation in found.items()}
        last = max(found, default=0)
        for step, evaluation in sorted(found.items()):
            # An older version said nothing of how it measured, which `measured_on` has behind the data.
            as_last = data[step] == data[last] or (data[step] and data[last] and data[last].startswith(data[step]))
            if as_last and samples[step] == samples[last]:
                yield step, evaluation if whole else evaluation[key]


def _from_current_folder(recipe: Recipe, entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reward entries for the config of a run, which stands in another folder than the recipe."""
    folder = Path(recipe.source).parent

    def moved(entry: Any) -> Any:
        if isinstance(entry, str):
            return from_current_folder(entry, folder)
        nested = {key: moved(value) for key, value in entry.items() if isinstance(value, dict) and "use" in value}
        return {**entry, **nested, "use": moved(entry["use"])}

    return [moved(entry) for entry in entries]
