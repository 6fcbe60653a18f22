"""Ending a run whose held-out score has stopped rising, and keeping the best model."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from rl.checkpoint.layout import EARLY_STOP
from rl.checkpoint.stateful_callback import StatefulCallback
from rl.config.sections import EarlyStopSection, Recipe
from uniar.errors import UserError


class EarlyStop(StatefulCallback):
    """Sees every evaluation: `patience` of them in a row without a score that is better by more than `min_delta` end
    training.

    `stopped` says why training is to end; None while it may go on.
    """

    name = EARLY_STOP

    def __init__(self, section: EarlyStopSection) -> None:
        self.section = section
        self.best: float | None = None
        self.best_step: int | None = None
        self.without_improvement = 0
        self.stopped: str | None = None

    def evaluated(self, step: int, metrics: Mapping[str, float], control: TrainerControl) -> bool:
        """Called after each evaluation, on every rank with the same metrics. True: this model is the best so far."""
        value, section = metrics[f"eval_{self.section.metric}"], self.section
        gain = -math.inf if math.isnan(value) else math.inf if self.best is None else value - self.best
        if gain > section.min_delta:
            self.best, self.best_step, self.without_improvement = value, step, 0
            return True
        self.without_improvement += 1
        self._stop_if_patience_is_over(control)
        return False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self._stop_if_patience_is_over(control)  # a run that had ended, and goes on to export

    def _stop_if_patience_is_over(self, control: TrainerControl) -> None:
        section = self.section
        if self.without_improvement >= section.patience:
            self.stopped = (
                f"held-out {section.metric} has not risen by more than {section.min_delta:g} in "
                f"{section.patience} evaluation{'s' * (section.patience > 1)}"
            )
            control.should_training_stop = True

    def report(self, step: int, last: int, folder: Path) -> str:
        """For the console, when training has ended after update `step` of `last`: why, if early, and which model is the
        best."""
        lines = [f"stopped after update {step}: {self.stopped}"] if self.stopped is not None and step < last else []
        if not self.best_step:
            lines.append("no evaluation was better than the starting model's")
        else:
            what = f"held-out {self.section.metric} {self.best:.4f} after update {self.best_step}"
            kept = f"best model {folder}: {what}"
            lost = f"{what} was the best, but a later model had replaced it before the run was resumed"
            lines.append(kept if folder.exists() else lost)
        return "\n".join(lines)

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step, "without_improvement": self.without_improvement}

    def set_state(self, state: dict[str, Any]) -> None:
        self.best = None if state["best"] is None else float(state["best"])
        self.best_step = None if state["best_step"] is None else int(state["best_step"])
        self.without_improvement = int(state["without_improvement"])


def check_metric(recipe: Recipe, rewards: Mapping[str | None, Sequence[str]]) -> None:
    """Raises UserError where evaluate.early_stop names no score of evaluations. rewards: of each held-out set, whose
    name is None where there is one without."""
    early_stop, names = recipe.evaluate.early_stop, dict.fromkeys(["reward"])
    names |= dict.fromkeys(name for own in rewards.values() for name in own)
    names |= dict.fromkeys(f"{one}/{name}" for one, own in rewards.items() if one for name in ("reward", *own))
    if early_stop is not None and early_stop.metric not in names:
        raise UserError(
            f"{recipe.source}: evaluate.early_stop.metric is {early_stop.metric!r}, expected one of {', '.join(names)}."
        )
