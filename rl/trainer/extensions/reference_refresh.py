"""A reference policy that follows the trained one from afar (TR-DPO, arXiv 2404.09656)."""

from pathlib import Path

from transformers import TrainerControl, TrainerState, TrainingArguments

from rl.checkpoint.layout import REFERENCE
from rl.checkpoint.stateful_callback import StatefulCallback
from rl.config.algorithm import ReferenceRefreshSection
from rl.policy.reference import AdapterCopy, FrozenCopy


class ReferenceRefresh(StatefulCallback):
    """reference ← (1 − mix) · reference + mix · policy, after every `every` updates."""

    name = REFERENCE

    def __init__(self, section: ReferenceRefreshSection, reference: FrozenCopy | AdapterCopy) -> None:
        self.section, self.reference = section, reference

    def begin(self) -> None:
        self.reference.prepare(self.trainer.trained_parameters(), self.trainer.accelerator)

    def place(self, checkpoint: Path) -> Path:
        return checkpoint / self.name

    def save(self, checkpoint: Path) -> None:
        self.reference.save(self.place(checkpoint))

    def load(self, checkpoint: Path) -> None:
        self.reference.load(self.place(checkpoint))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.global_step % self.section.every == 0:
            self.reference.refresh(self.trainer.trained_parameters(), self.section.mix)
