"""What happens beside the updates: held-out evaluation, metrics, plots, sample grids, the console."""

from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

from rl.evaluate import Evaluator
from rl.pictures import plot_metrics, sample_grid
from rl.run_folder import RunFolder
from rl.stopping import Stopper

if TYPE_CHECKING:
    from rl.trainer import UniARTrainer

PLOT_EVERY = 20
"""Updates between two refreshes of the plot; an evaluation refreshes it too."""


class RunCallback(TrainerCallback):
    """Keeps the run folder: metrics.jsonl, metrics.png, samples/, best/, and a line on the console for each log.

    `export` writes the policy as it is to a folder; every rank calls it.
    """

    def __init__(
        self,
        folder: RunFolder,
        evaluator: Evaluator | None,
        stopper: Stopper,
        export: Callable[[Path], None],
        *,
        every: int | None,
        at_start: bool,
        at_end: bool,
    ) -> None:
        self.folder, self.evaluator, self.stopper, self.export = folder, evaluator, stopper, export
        self.every, self.at_start, self.at_end = every, at_start, at_end
        self.trainer: UniARTrainer | None = None
        self._evaluated_step: int | None = None

    def attach(self, trainer: "UniARTrainer") -> None:
        """Called once, when the trainer exists."""
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.folder.forget_after(state.global_step)
        if self.at_start and state.global_step == 0:
            self._evaluate(args, state, control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.every and state.global_step % self.every == 0:
            self._evaluate(args, state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.at_end and not self.stopper.stopped and self._evaluated_step != state.global_step:
            self._evaluate(args, state, control)
        if state.is_world_process_zero:
            plot_metrics(self.folder.read(), self.folder.plot)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        self.folder.append(state.global_step, logs)
        if self.trainer.last_scored is not None:
            samples, table = self.trainer.last_scored
            self.folder.append_details(state.global_step, [sample.record.prompt for sample in samples], table)
            self.trainer.last_scored = None
        if line := _console_line(state, logs):
            print(line, flush=True)
        if state.global_step % PLOT_EVERY == 0 or "eval_reward" in logs:
            plot_metrics(self.folder.read(), self.folder.plot)

    def _evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        if self.evaluator is None:
            return
        with self.trainer.evaluated_weights():
            with self.trainer.policy() as policy:
                evaluation = self.evaluator.run(policy, self.trainer.accelerator)
            if state.is_world_process_zero:
                self.folder.save_evaluation(state.global_step, evaluation)
            early_stop = self.trainer.features.early_stop
            # The starting model is there already.
            if (
                early_stop is not None
                and early_stop.evaluated(state.global_step, evaluation.metrics(), control)
                and state.global_step
            ):
                self.export(self.folder.best)
        self._evaluated_step = state.global_step
        # Straight to the callbacks: the trainer's own `log` would close the training metrics under way. The handler
        # takes the log for the one that is due, so it gets a copy of the flags.
        self.trainer.callback_handler.on_log(args, state, copy(control), evaluation.metrics())
        if not state.is_world_process_zero:
            return
        if evaluation.shown:
            path = self.folder.samples / f"step-{state.global_step:06d}.png"
            tiles = [(image, record.prompt, total) for record, image, total in evaluation.shown]
            sample_grid(tiles, path, notes=evaluation.notes)
            self._report_picture(path, state.global_step)

    def _report_picture(self, path: Any, step: int) -> None:
        """To TensorBoard and W&B, where the run reports to them."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_image("samples", pixels, step, dataformats="HWC")
        if "wandb" in (self.trainer.args.report_to or []):
            import wandb

            if wandb.run is not None:
                wandb.log({"samples": wandb.Image(pixels)})


def _console_line(state: TrainerState, logs: dict[str, float]) -> str:
    """One line a log: progress, reward, KL, entropy and the seconds of each phase; "" for what needs no line."""
    head = f"[{state.global_step}/{state.max_steps}]"
    if "eval_reward" in logs:
        return f"{head} held-out reward {logs['eval_reward']:.4f} ± {logs['eval_reward_se']:.4f}"
    if "reward" not in logs:
        return ""
    parts = [f"{head} reward {logs['reward']:.4f}"]
    parts += [f"{name} {logs[name]:.2e}" for name in ("kl", "grad_norm") if logs.get(name) is not None]
    if logs.get("entropy") is not None:
        parts.append(f"entropy {logs['entropy']:.4f}")
    seconds = [f"{key.split('/')[1]} {value:.1f}s" for key, value in logs.items() if key.startswith("seconds/")]
    return "  ".join([*parts, "| " + " ".join(seconds)])
