"""Guards against reward hacking (Gao et al., arXiv 2210.10760): each evaluation is held against the run's first one."""

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerControl, TrainerState, TrainingArguments

from rl.checkpoint.layout import GUARDS
from rl.checkpoint.stateful_callback import StatefulCallback
from rl.config.evaluation_sets import sets_of, trained_rewards
from rl.config.sections import Recipe
from rl.config.watch import GuardsSection
from rl.evaluation.evaluate import Evaluation, paired_gain
from rl.run.curves import rise

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Seen:
    """What guards need of an evaluation of one held-out set."""

    look: Mapping[str, float]
    """diversity, sharpness and near_duplicates (rl/evaluation/look.py), as far as there are pictures to measure"""
    scores: Mapping[str, Sequence[float | None]]
    """reward that is not trained on → its scores, None where it has none"""

    @classmethod
    def of(cls, evaluation: Evaluation, trained: set[str]) -> "Seen":
        columns = zip(evaluation.names, evaluation.values.T.tolist(), strict=True)
        return cls(
            {} if evaluation.look is None else _finite(evaluation.look.metrics()),
            {
                name: [None if math.isnan(score) else score for score in column]
                for name, column in columns
                if name not in trained
            },
        )


class Guards(StatefulCallback):
    """Sees every evaluation. `stopped` says why training is to end; None while it may go on."""

    name = GUARDS

    def __init__(self, section: GuardsSection, recipe: Recipe, measured: str) -> None:
        """measured: tells evaluations apart that cannot be compared, because they are of other samples or rewards."""
        self.section, self.measured = section, f"{measured} {recipe.records.picture_size}"
        self.trained = {name: trained_rewards(own) for name, own in sets_of(recipe).items()}
        self.start: dict[str, Seen] = {}
        """set → its first evaluation; "" where there is one set without a name"""
        self.stopped: str | None = None

    def evaluated(
        self, step: int, evaluation: Evaluation, history: Sequence[Mapping[str, Any]], control: TrainerControl
    ) -> list[str]:
        """Called after each evaluation, on every rank with the same; history: the lines that training has logged.
        Returns a sentence for each limit that it is past."""
        parts = evaluation.sets or {"": evaluation}
        seen = {name: Seen.of(part, self.trained[name or None]) for name, part in parts.items()}
        if not self.start:
            self.start = seen
            return []
        rose = rise([line["reward"] for line in history if line.get("reward") is not None])
        risen = rose[0] if rose is not None and rose[0] > 2 * rose[1] else None
        past = [
            found
            for name, part in seen.items()
            for found in self._past(self.start[name], part, risen, f" of {name}" if name else "")
        ]
        said = [f"update {step}: {sentence}" for _, sentence in past]
        if self.trainer.accelerator.is_main_process:
            for sentence in said:
                logger.warning("WARNING: %s", sentence)
        if past and self.section.action == "stop":
            self.stopped = f"past {' and '.join(dict.fromkeys(f'watch.guards.{limit}' for limit, _ in past))}"
            control.should_training_stop = True
        return said

    def _past(self, start: Seen, now: Seen, risen: float | None, of: str) -> Iterator[tuple[str, str]]:
        """The limits that the evaluation is past, and what to say of each. risen: by how much the training reward has;
        None where it has not. of: names the set."""
        limits, before, after = self.section, start.look, now.look
        for name in now.scores if risen is not None else ():
            gain, error = paired_gain(_scores(start, name), _scores(now, name))
            if limits.untrained is not None and gain < 0 and -gain > limits.untrained * error:
                errors = -gain / error if error else math.inf
                yield (
                    "untrained",
                    f"the training reward rose by {risen:.3g}, and {name}{of}, which is not trained on, fell by "
                    f"{-gain:.3g}, {errors:.1f} standard errors (watch.guards.untrained {limits.untrained:g}): the "
                    "reward is being gamed; look at samples/, raise algorithm.beta, or train on that score too.",
                )
        part = _times(before, after, "diversity")
        if limits.diversity is not None and part < limits.diversity:
            yield (
                "diversity",
                f"the diversity of pictures{of} is {after['diversity']:.3g}, {part:.0%} of the start's "
                f"{before['diversity']:.3g} (watch.guards.diversity {limits.diversity:.0%}): the policy draws ever "
                "fewer pictures; raise algorithm.beta, or lower trainer.learning_rate.",
            )
        part = _times(before, after, "sharpness")
        if limits.sharpness is not None and (part > limits.sharpness or part < 1 / limits.sharpness):
            what = "clutter or noise pays" if part > 1 else "blur or emptiness pays"
            yield (
                "sharpness",
                f"the sharpness of pictures{of} is {after['sharpness']:.3g}, {part:.2g} times the start's "
                f"{before['sharpness']:.3g} (watch.guards.sharpness {limits.sharpness:g}): {what}; look at samples/, "
                "and add a reward that sees it.",
            )
        more = after.get("near_duplicates", math.nan) - before.get("near_duplicates", math.nan)
        if limits.near_duplicates is not None and more > limits.near_duplicates:
            yield (
                "near_duplicates",
                f"{after['near_duplicates']:.0%} of the pictures{of} nearly repeat one of another prompt, "
                f"{before['near_duplicates']:.0%} at the start (watch.guards.near_duplicates "
                f"{limits.near_duplicates:.0%}): the policy ignores its prompts; add a reward that reads them.",
            )

    def report(self, step: int, last: int) -> list[str]:
        """For the console, when training has ended after update `step` of `last`."""
        return [f"stopped after update {step}: {self.stopped}"] if self.stopped is not None and step < last else []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self.stopped is not None:
            control.should_training_stop = True  # a run that had ended, and goes on to export

    def state(self) -> dict[str, Any]:
        return {
            "measured": self.measured,
            "start": {name: dataclasses.asdict(seen) for name, seen in self.start.items()},
            "stopped": self.stopped,
            "limits": dataclasses.asdict(self.section),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        if state["measured"] != self.measured:
            return  # the next evaluation is the first of its kind
        self.start = {str(name): Seen(**seen) for name, seen in state["start"].items()}
        if state["limits"] == dataclasses.asdict(self.section):
            self.stopped = state["stopped"]


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    """One picture alone has no diversity."""
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _times(before: Mapping[str, float], after: Mapping[str, float], name: str) -> float:
    """NaN, which is past no limit, where either was not measured, or nothing was there at the start."""
    return after.get(name, math.nan) / before[name] if before.get(name) else math.nan


def _scores(seen: Seen, name: str) -> Tensor:
    return torch.tensor([math.nan if score is None else score for score in seen.scores[name]], dtype=torch.float64)
