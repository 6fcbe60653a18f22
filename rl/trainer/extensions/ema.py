"""Exponential moving average (EMA) of the trained weights (Polyak and Juditsky 1992; for RL of image models: Flow-GRPO,
arXiv 2505.05470)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from rl.checkpoint.layout import EMA
from rl.checkpoint.stateful_callback import StatefulCallback
from rl.config.model import EmaSection
from rl.distributed.weight_slices import WeightSlices


class WeightAverage(StatefulCallback):
    """average ← decay · average + (1 − decay) · weights, after every `update_every` updates, in float32.

    It starts as the weights that training starts from, and covers the trained ones alone.
    """

    name = EMA
    slices: WeightSlices
    """the average, from `begin` on"""

    def __init__(self, section: EmaSection) -> None:
        self.section = section

    def begin(self) -> None:
        device = "cpu" if self.section.device == "cpu" else None
        self.slices = WeightSlices.copied(self.trainer.trained_parameters(), self.trainer.accelerator, device=device)

    def place(self, checkpoint: Path) -> Path:
        return checkpoint / EMA

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
