"""What has a state of its own that a checkpoint must hold: the base of the training features that do."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from uniar.errors import UserError
from uniar.reading.files import read_json, reason_of, write_whole

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

logger = logging.getLogger(__name__)


class RunningTrainer(Protocol):
    """What a state is made of and saved by: the part of the trainer that callbacks may see."""

    accelerator: "Accelerator"
    resumed_from: Path | None
    """the checkpoint that this run goes on from"""

    def trained_parameters(self) -> "dict[str, nn.Parameter]": ...


class StatefulCallback(TrainerCallback):
    """A callback whose state is saved with each checkpoint and read when a run is resumed.

    By default the state is a few numbers, `state()`, in a JSON file; one with tensors overrides `save` and `load`.
    """

    name: str
    """of its file or folder in a checkpoint"""

    trainer: RunningTrainer

    def attach(self, trainer: RunningTrainer) -> None:
        """Called once, when the trainer exists."""
        self.trainer = trainer

    def begin(self) -> None:
        """The state of a new run. Called on every rank before the first update, when the engine has the weights."""

    def state(self) -> dict[str, Any]:
        """Plain numbers and strings, the same on every rank."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""

    def place(self, checkpoint: Path) -> Path:
        return checkpoint / f"{self.name}.json"

    def save(self, checkpoint: Path) -> None:
        """Writes the state into a checkpoint's folder. Called on every rank."""
        if self.trainer.accelerator.is_main_process:
            write_whole(self.place(checkpoint), json.dumps(self.state(), indent=2) + "\n")

    def load(self, checkpoint: Path) -> None:
        """Reads the state. Called on every rank. Raises UserError where it is not one."""
        found = read_json(self.place(checkpoint), f"state of {self.name}")
        try:
            self.set_state(found)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.place(checkpoint)} is not a state of {self.name}: {type(error).__name__} {reason_of(error)}."
            ) from error

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.begin()
        checkpoint = self.trainer.resumed_from
        if checkpoint is None:
            return
        if self.place(checkpoint).exists():
            self.load(checkpoint)
        elif self.trainer.accelerator.is_main_process:
            logger.warning("%s has no %s, which starts anew.", checkpoint, self.place(checkpoint).name)
