"""Ending a run early without losing anything: signals, a time limit."""

import signal
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rl.distributed.process_roles import SIGNALS

if TYPE_CHECKING:
    from rl.trainer.resumable import ResumableGRPOTrainer


class Stopper(TrainerCallback):
    """On SIGTERM, SIGUSR1 (pre-emption) or SIGINT, or after `max_runtime` seconds: finishes the updates of the rollout
    under way, saves, and ends training. A second SIGINT ends it at once.

    `stopped` says afterwards why training ended early; None when it did not.
    """

    trainer: "ResumableGRPOTrainer"

    def __init__(self, max_runtime: float | None = None) -> None:
        self.max_runtime = max_runtime
        self.stopped: str | None = None
        self._requested: str | None = None
        self._started = time.monotonic()
        self._previous: dict[int, Any] = {}

    def attach(self, trainer: "ResumableGRPOTrainer") -> None:
        """Called once, when the trainer exists."""
        self.trainer = trainer

    def __enter__(self) -> "Stopper":
        # Only the main thread may set handlers; a trainer in another thread is stopped by whoever runs it.
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._requested is not None:
            raise KeyboardInterrupt
        self._requested = signal.Signals(number).name

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.max_runtime is not None and time.monotonic() - self._started > self.max_runtime:
            self._requested = self._requested or "max_runtime"
        if not self._anyone_asked() or state.global_step % self.trainer.updates_of_rollout:
            return
        if state.global_step >= state.max_steps and args.save_strategy == "no":
            return  # the export is all that keeps what has been trained
        # A rank that was not asked itself stops with the others.
        self.stopped = self._requested or "another process"
        control.should_save = args.save_strategy != "no"
        control.should_training_stop = True

    def _anyone_asked(self) -> bool:
        accelerator = self.trainer.accelerator
        if accelerator.num_processes == 1:
            return self._requested is not None
        asked = torch.tensor([float(self._requested is not None)], device=accelerator.device)
        return bool(accelerator.reduce(asked, reduction="sum").item())
