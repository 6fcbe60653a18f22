"""The text-KL term in a training step: begun once per update, and a part of it taken in each micro-batch."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from rl.policy.reference import Reference
from rl.policy.text_kl import TextKL

if TYPE_CHECKING:
    from rl.trainer.resumable import ResumableGRPOTrainer


class TextTerm:
    """`trainer` lends the model, the processes, the clock, and the number of the update."""

    def __init__(self, trainer: "ResumableGRPOTrainer", kl: TextKL, reference: Reference | None) -> None:
        assert reference is not None  # as `reference_for` makes one for this term
        self.trainer, self.kl, self.reference = trainer, kl, reference

    def divergence(self, model: Any) -> Tensor | None:
        """This micro-batch's part, with gradient; None where it has none. Collective."""
        processes, update = self.trainer.accelerator, self.trainer.state.global_step
        if self.kl.update != update:
            with (
                self.trainer.phase("text"),
                self.reference.ready(self.trainer.model, processes) as reference,
                processes.autocast(),
            ):
                self.kl.begin(
                    update,
                    reference,
                    processes.device,
                    process=processes.process_index,
                    processes=processes.num_processes,
                    micro_batches=self.trainer.current_gradient_accumulation_steps,
                )
        return self.kl.divergence(model)
