"""Exponential moving average (EMA) of the trained weights (Polyak and Juditsky 1992; for RL of image models: Flow-GRPO,
arXiv 2505.05470)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerControl, TrainerState, TrainingArguments

from rl.checkpoint.keeper import Keeper
from rl.config.model import EmaSection
from rl.distributed.weight_slices import SlicedFiles, WeightSlices
from uniar.errors import UserError

FOLDER = "ema"
"""in a checkpoint"""


class WeightAverage(Keeper):
    """average ← decay · average + (1 − decay) · weights, after every `update_every` updates, in float32.

    It starts as the weights that training starts from, and covers the trained ones alone.
    """

    name = FOLDER

    def __init__(self, section: EmaSection) -> None:
        self.section = section
        self.slices: WeightSlices | None = None

    def begin(self) -> None:
        device = "cpu" if self.section.device == "cpu" else None
        self.slices = WeightSlices.copied(self.trainer.trained_parameters(), self.trainer.accelerator, device=device)

    def place(self, checkpoint: Path) -> Path:
        return checkpoint / FOLDER

    def save(self, checkpoint: Path) -> None:
        self.slices.save(self.place(checkpoint))

    def load(self, checkpoint: Path) -> None:
        self.slices.load(self.place(checkpoint))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.section.update_every == 0:
            self.slices.approach(1 - self.section.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The policy has the averaged weights inside the block. Collective."""
        with self.slices.in_place():
            yield


def averaged_weights(checkpoint: Path) -> Mapping[str, Tensor]:
    """The averages in a checkpoint under the trained model's names, in float32, each put together at its look-up.

    Raises UserError for a checkpoint without them, or with some of their files missing.
    """
    if not (checkpoint / FOLDER).is_dir():
        raise UserError(f"{checkpoint} has no averaged weights; its run had no model.ema.")
    return SlicedFiles(checkpoint / FOLDER)
