"""What happens beside the updates: held-out evaluation, metrics, plots, sample grids, the console."""

import logging
import time
from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

from rewards import RewardTable
from rl.checkpoint.folder_lock import FolderLock
from rl.config.grpo_config import RunConfig, flat
from rl.evaluation.evaluate import Evaluator
from rl.evaluation.several_sets import SeveralSets
from rl.evaluation.understanding import Examiner
from rl.policy.samples import Sample
from rl.records.mirror import to_tensorboard, to_wandb
from rl.report.page import write_report
from rl.run.console import RunConsole
from rl.run.curves import GUARDS_SAID
from rl.run.folder import RunFolder
from rl.run.pictures import sample_grid
from rl.run.plot import plot_metrics
from rl.trainer.stopping import Stopper
from uniar.reading.files import reason_of

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from rl.trainer.trainer import UniARTrainer

logger = logging.getLogger(__name__)

PLOT_EVERY = 20
"""Updates between two refreshes of the plot; an evaluation refreshes it too."""


class RunCallback(TrainerCallback):
    """Keeps the run folder: metrics.jsonl, metrics.png, samples/, best/, and a line on the console for each log.

    `export` writes the policy as it is to a folder; every rank calls it.
    """

    trainer: "UniARTrainer"

    def __init__(
        self,
        folder: RunFolder,
        evaluator: Evaluator | SeveralSets | None,
        stopper: Stopper,
        lock: FolderLock,
        export: Callable[[Path], None],
        console: RunConsole,
        *,
        every: int | None,
        at_start: bool,
        at_end: bool,
        examiner: Examiner | None = None,
        examine_every: int | None = None,
        held_out_as: str | None = None,
    ) -> None:
        """lock: has taken the folder, in the main process. export: writes the model to a folder. evaluator, examiner:
        None where nothing is held out to draw, or to ask. every, examine_every: updates between two evaluations of
        either. held_out_as: see `plot_metrics`."""
        self.folder, self.evaluator, self.stopper = folder, evaluator, stopper
        self.lock, self.export, self.console = lock, export, console
        self.every, self.at_start, self.at_end = every, at_start, at_end
        self.examiner, self.examine_every = examiner, examine_every
        self.held_out_as = held_out_as
        self._drawn_step: int | None = None
        self._asked_step: int | None = None
        self._report_failed = False
        self._scored: tuple[list[Sample], RewardTable] | None = None

    def attach(self, trainer: "UniARTrainer") -> None:
        """Called once, when the trainer exists."""
        self.trainer = trainer

    def scores_seen(self, samples: list[Sample], scored: RewardTable) -> None:
        """Called with each rollout's samples of this process: the last before a log are what it keeps details of."""
        self._scored = (samples, scored)

    def on_train_begin(self, args: RunConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        done: list[bool] = [False, False]
        if state.is_world_process_zero:
            self.folder.go_back_to(self.trainer.resumed_from, state.global_step)
            done = list(self.folder.evaluated_at(state.global_step))
            self._report_settings(args)
            if self.examiner is not None:
                self.folder.save_questions(self.examiner.questions, self.trainer.recipe.records.picture_size)
        drawn, asked = broadcast_object_list(done)
        self._drawn_step, self._asked_step = (state.global_step if it else None for it in (drawn, asked))
        self.console.at(state.global_step, state.max_steps)
        if self.at_start and state.global_step == 0:
            self._evaluate(args, state, control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.lock.require_there()
        self.console.at(state.global_step, state.max_steps)
        draw, ask = (every and state.global_step % every == 0 for every in (self.every, self.examine_every))
        if draw or ask:
            self._evaluate(args, state, control, draw=bool(draw), ask=bool(ask))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.at_end and not self.stopper.stopped:
            step = state.global_step
            if state.is_world_process_zero and step not in (self._drawn_step, self._asked_step):
                self.folder.forget_evaluation_at(step)
            self._evaluate(args, state, control, draw=self._drawn_step != step, ask=self._asked_step != step)
        if state.is_world_process_zero:
            plot_metrics(self.folder.read(), self.folder.plot, self.held_out_as)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return  # the last: transformers' means over what this process has trained, which may be a part of the run
        self.folder.append(state.global_step, {**logs, "time": round(time.time(), 3)})
        if self._scored is not None:
            samples, table = self._scored
            self.folder.append_details(state.global_step, [sample.record.prompt for sample in samples], table)
            self._scored = None
        self.console.log(state.global_step, state.max_steps, logs)
        if state.global_step % PLOT_EVERY == 0 or any(name.startswith("eval_") for name in logs):
            plot_metrics(self.folder.read(), self.folder.plot, self.held_out_as)

    def _evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        draw: bool = True,
        ask: bool = True,
    ) -> None:
        """Has the policy draw the held-out prompts and answer the held-out questions, as far as there are any."""
        step, evaluation, understanding = state.global_step, None, None
        said: list[str] | None = None
        evaluator, examiner = self.evaluator if draw else None, self.examiner if ask else None
        if evaluator is None and examiner is None:
            return
        with self.trainer.evaluated_weights():
            with self.trainer.policy() as policy:
                if evaluator is not None:
                    evaluation, self._drawn_step = evaluator.run(policy, self.trainer.accelerator), step
                if examiner is not None:
                    understanding, self._asked_step = examiner.run(policy, self.trainer.accelerator), step
            if state.is_world_process_zero:
                self.folder.save_evaluation(step, evaluation, understanding)
            early_stop, guards = self.trainer.extensions.early_stop, self.trainer.extensions.guards
            # The starting model is there already.
            if (
                evaluation is not None
                and early_stop is not None
                and early_stop.evaluated(step, evaluation.metrics(), control)
                and step
            ):
                self.export(self.folder.best)
                if state.is_world_process_zero:
                    self.folder.note_best(step)
        if evaluation is not None and guards is not None:
            said = guards.evaluated(step, evaluation, state.log_history, control)
        stops = [each.stopped for each in (early_stop, guards) if each is not None and each.stopped is not None]
        if stops and args.save_strategy != "no":
            control.should_save = True  # the run's last checkpoint
        found = [part for part in (evaluation, understanding) if part is not None]
        # Straight to the callbacks: the trainer's own `log` would close the training metrics under way. The handler
        # takes the log for the one that is due, so it gets a copy of the flags.
        metrics = {name: value for part in found for name, value in part.metrics().items()}
        if said is not None:
            metrics["eval_guards/passed"] = len(said)
        self.trainer.callback_handler.on_log(args, state, copy(control), metrics)
        if not state.is_world_process_zero:
            return
        if said:
            self.folder.append(step, {GUARDS_SAID: said})
        self.write_report()
        if self.evaluator is not None and evaluation is not None and evaluation.shown:
            path = self.folder.samples / f"step-{step:06d}.png"
            sample_grid(evaluation.shown, path, notes=evaluation.notes)
            drawn = {n: one.image for n, one in zip(self.evaluator.shown, evaluation.shown, strict=True)}
            to_tensorboard(self._tensorboards(), evaluation.rows, drawn, step)
            if "wandb" in (self.trainer.args.report_to or []):
                to_wandb(evaluation.rows, drawn, step)

    def write_report(self, running: bool = True) -> None:
        """The page of the run so far. What goes wrong with it is said once and ends no run."""
        if not self.trainer.recipe.records.report or self._report_failed:
            return
        try:
            write_report([self.folder.path], self.folder.report, running=running)
        except Exception as error:
            self._report_failed = True
            logger.warning("%s is not written: %s.", self.folder.report, reason_of(error))

    def _report_settings(self, args: RunConfig) -> None:
        """To TensorBoard's table of runs; other reporters ask `args` for them."""
        for writer in self._tensorboards():
            writer.add_hparams(flat(args.to_dict()), {}, run_name=".")  # into the run's own folder

    def _tensorboards(self) -> Iterator["SummaryWriter"]:
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                yield callback.tb_writer
