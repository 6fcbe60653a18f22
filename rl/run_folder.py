"""The folder of a run: what is in it, and that it belongs to one run only.

config.yaml          the resolved recipe
metrics.jsonl        one object a log line or evaluation, by step
details.jsonl        what rewards say about the samples of training, one object a sample; the main process's share
samples/step-N.png   the same held-out prompts each time, reward under each image
evaluations/         step-N.json: scores of all held-out samples, and under "understanding" the answers to all held-out
                     questions; details-N.json: what rewards say about the samples
metrics.png          reward, KL and entropy, and the share of right answers, over the steps
checkpoint-N/        to resume from
best/                with evaluate.early_stop: the exported checkpoint of the best evaluation
best.json            the update that it is of
final/               the exported checkpoint
"""

import dataclasses
import difflib
import json
import math
import re
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewards import RewardTable
from rewards.registry import from_current_folder
from rl.checkpoints import checkpoints
from rl.config import Recipe
from rl.evaluate import Evaluation
from rl.folder_lock import FolderLock
from rl.understanding import ANSWER_SCORES, Understanding
from uniar.errors import UserError

CONFIG = "config.yaml"


class RunFolder:
    """Paths and records of a run. Only the main process writes."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / CONFIG
        self.metrics = self.path / "metrics.jsonl"
        self.details = self.path / "details.jsonl"
        self.plot = self.path / "metrics.png"
        self.samples = self.path / "samples"
        self.evaluations = self.path / "evaluations"
        self.best = self.path / "best"
        self.best_step = self.path / "best.json"
        self.final = self.path / "final"

    @classmethod
    def claim(cls, recipe: Recipe, *, resume: bool = False, lock: FolderLock | None = None) -> "RunFolder":
        """The run's folder, made if need be, with the resolved recipe in it.

        A folder that holds a run already is taken only to resume it; what the recipe now says otherwise is printed and
        becomes its config. Where the recipe leaves the name to us, a new run takes the first unused of NAME, NAME-2,
        NAME-3, …, and a resumed one the last used. lock: takes the folder, so that no other run may.
        """
        path, following = Path(recipe.output_dir), Path(recipe.output_dir)
        if recipe.names_its_folder_itself:
            following = path
        else:
            number = 1
            while (following / CONFIG).exists():
                number += 1
                path, following = following, Path(f"{recipe.output_dir}-{number}")
        folder = cls(path if resume else following)
        if folder.config.exists() and not resume:
            raise UserError(
                f"{folder.path} holds another run ({CONFIG} is there); "
                "choose another output_dir, or resume that run with --resume."
            )
        try:
            for part in (folder.samples, folder.evaluations):
                part.mkdir(parents=True, exist_ok=True)
            if lock is not None:
                lock.take(folder.path)
            resolved = dataclasses.replace(
                recipe,
                output_dir=str(folder.path),
                rewards=_from_current_folder(recipe, recipe.rewards),
                eval_rewards=_from_current_folder(recipe, recipe.eval_rewards),
            ).to_yaml()
            if folder.config.exists():
                print_changes(folder.config.read_text(), resolved)
            folder.config.write_text(resolved)
        except OSError as error:
            raise UserError(f"output_dir {folder.path} cannot be written: {error}.") from error
        return folder

    def release_if_unused(self) -> None:
        """Lets another run have the folder when this one stopped before it had anything to keep."""
        if not self.metrics.exists() and not checkpoints(self.path):
            self.config.unlink(missing_ok=True)

    def append(self, step: int, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl; a value that is no finite number becomes null, as JSON has no NaN."""
        line = {"step": step, **json_ready(values)}
        with self.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl, in order; none before the first was written. A last line that was cut short, as a
        killed process leaves it, is left out."""
        return _lines(self.metrics)

    def copy_records(self, checkpoint: Path) -> None:
        """Puts the recipe and the metrics so far into a checkpoint that is being written, so that it says by itself
        what it is and a run can go on from it alone."""
        for file in (self.config, self.metrics):
            if file.exists():
                shutil.copyfile(file, checkpoint / file.name)

    def restore_records(self, checkpoint: Path) -> None:
        """Takes the metrics back from the checkpoint that a run is resumed from: those are on the disk since the
        checkpoint is, the run's own last lines may have been lost with the machine."""
        if (checkpoint / self.metrics.name).exists():
            shutil.copyfile(checkpoint / self.metrics.name, self.metrics)

    def forget_after(self, step: int) -> None:
        """Drops the lines, evaluations, pictures and the best model of later steps, which a resumed run makes again, or
        not at all."""
        for file in (*self.evaluations.iterdir(), *self.samples.iterdir()):
            number = re.fullmatch(r"(?:step|details)-(\d+)", file.stem)
            if number is not None and int(number[1]) > step:
                file.unlink()
        if self.best_step.exists() and json.loads(self.best_step.read_text())["step"] > step:
            shutil.rmtree(self.best, ignore_errors=True)
            self.best_step.unlink()
        for file in (self.metrics, self.details):
            if file.exists():
                kept = [line for line in _lines(file) if line["step"] <= step]
                _replace(file, "".join(json.dumps(line) + "\n" for line in kept))

    def note_best(self, step: int) -> None:
        """Says which update the model in best/ is of."""
        _replace(self.best_step, json.dumps({"step": step}) + "\n")

    def append_details(self, step: int, prompts: Sequence[str], table: RewardTable) -> None:
        """Lines of details.jsonl for B samples: their scores, and what rewards say. None where no reward does."""
        if not table.details:
            return
        with self.details.open("a") as file:
            for row, prompt in enumerate(prompts):
                scores = dict(zip(table.names, table.values[row].tolist(), strict=True))
                said = {name: rows[row] for name, rows in table.details.items() if rows[row]}
                line = {"step": step, "prompt": prompt, "scores": scores, "details": said}
                file.write(json.dumps(json_ready(line)) + "\n")

    def save_evaluation(self, step: int, evaluation: Evaluation | None, understanding: Understanding | None) -> None:
        """Totals and scores of all samples, in the order of the prompts: what a paired comparison needs; the answers in
        the order of the questions. The two may come one after the other."""
        file = self.evaluations / f"step-{step:06d}.json"
        found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        if evaluation is not None:
            columns = dict(zip(evaluation.names, evaluation.values.T.tolist(), strict=True))
            found |= {"total": evaluation.totals.tolist(), **columns}
            if evaluation.details:
                details = json.dumps(json_ready(evaluation.details))
                (self.evaluations / f"details-{step:06d}.json").write_text(details + "\n")
        if understanding is not None:
            found["understanding"] = understanding.columns()
        file.write_text(json.dumps(json_ready(found)) + "\n")

    def evaluated_totals(self) -> dict[int, Tensor]:
        """Step → (N,) totals of its evaluation."""
        found = {}
        for step, evaluation in self.evaluated("total"):
            values = [math.nan if total is None else total for total in evaluation]
            found[step] = torch.tensor(values, dtype=torch.float64)
        return found

    def evaluated_understanding(self) -> dict[int, dict[str, float]]:
        """Step → means of the held-out questions: exact_match, p_answer, p_token."""
        return {
            step: {name: statistics.fmean(columns[name]) for name in ANSWER_SCORES}
            for step, columns in self.evaluated("understanding")
        }

    def evaluated(self, key: str, *, whole: bool = False) -> Iterator[tuple[int, Any]]:
        """Step by step what evaluations have under `key`, or with `whole` all of those that have it."""
        for file in sorted(self.evaluations.glob("step-*.json")):
            found = json.loads(file.read_text())
            if key in found:
                yield int(file.stem.removeprefix("step-")), found if whole else found[key]


def _from_current_folder(recipe: Recipe, entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reward entries for the config of a run, which stands in another folder than the recipe."""
    folder = Path(recipe.source).parent
    return [{**entry, "use": from_current_folder(entry["use"], folder)} for entry in entries]


def _replace(file: Path, text: str) -> None:
    """A process that is killed meanwhile leaves the file as it was."""
    replacement = file.with_suffix(".partial")
    replacement.write_text(text)
    replacement.replace(file)


def print_changes(before: str, after: str) -> None:
    """Says on the console which lines of a run's config a resumed run changes."""
    changes = [
        line
        for line in difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
        if line[:1] in "+-" and line[:3] not in ("+++", "---")
    ]
    if changes:
        print("resumed with another recipe:", *changes, sep="\n  ", flush=True)


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []


def json_ready(value: Any) -> Any:
    """Plain values with null for every number that JSON has no word for: NaN and the infinities."""
    if isinstance(value, Mapping):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
