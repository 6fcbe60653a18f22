"""The weight of the KL term, steered so that the policy keeps a given distance from the reference."""

import math
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from rl.checkpoint.layout import KL_CONTROL
from rl.checkpoint.stateful_callback import StatefulCallback
from rl.config.algorithm import KLControlSection

LARGEST_ERROR = 0.2
"""however far the KL is off, it counts as no more than this share of the target"""


class KLControl(StatefulCallback):
    """The proportional controller of Ziegler et al. (arXiv 1909.08593, section 2.2), once an update:

    β ← β · (1 + rate · clip(KL / target − 1, −0.2, 0.2))
    """

    name = KL_CONTROL

    def __init__(self, section: KLControlSection, beta: float) -> None:
        self.section, self.beta = section, beta
        self._measured: list[float] = []

    def measure(self, kl: float) -> None:
        """The mean KL of a micro-batch over all ranks, in nats per bit."""
        self._measured.append(kl)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self._measured:  # nothing was drawn for this update
            return
        kl = sum(self._measured) / len(self._measured)
        self._measured.clear()
        if not math.isfinite(kl):  # of an update that watch.nonfinite let pass: beta would never be a number again
            return
        error = min(max(kl / self.section.target - 1, -LARGEST_ERROR), LARGEST_ERROR)
        self.beta *= 1 + self.section.rate * error

    def state(self) -> dict[str, Any]:
        return {"beta": self.beta}

    def set_state(self, state: dict[str, Any]) -> None:
        self.beta = float(state["beta"])
