"""Watches a run for what goes wrong, and warns, skips the update, or stops, as the recipe says."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import TrainerControl, TrainerState, TrainingArguments

from rl.checkpoint.layout import BAD_BATCHES, WATCH
from rl.checkpoint.stateful_callback import StatefulCallback
from rl.config.watch import WatchAction, WatchSection
from rl.distributed.engine import cannot_skip_updates, left_out_update, makes_updates_itself
from rl.policy.turns import named_tensors
from rl.trainer.forwards import Forward
from uniar.errors import RunError, UserError

if TYPE_CHECKING:
    from rl.trainer.resumable import ResumableGRPOTrainer

logger = logging.getLogger(__name__)
MicroBatch = Sequence[Forward]

UNSCORED_ROLLOUTS = 3
"""rollouts without any score, from the start on, after which there is no hope of one"""


class Watch(StatefulCallback):
    """Sees every rollout's rewards, every micro-batch's loss, every update's metrics and gradients: before the update
    is made.

    What is judged is the same on all ranks: metrics of all of them, gradients that they share. DeepSpeed makes no
    update with a gradient that is not finite by itself, and is told by one to skip others.
    """

    name = WATCH
    trainer: "ResumableGRPOTrainer"

    def __init__(self, section: WatchSection) -> None:
        self.section = section
        self._batches: list[MicroBatch] = []  # of the update under way
        self._losses: list[Tensor] = []  # of those, on this rank
        self._skip = self._reported = False
        self._kept: set[str] = set()  # settings that were passed; of each, the first batch is in bad_batches/
        self._without_variance = self._skipped_in_a_row = self._updates_made = self._updates_skipped = 0
        self._variance, self._fresh = False, True
        self._scored, self._unscored_rollouts = False, 0

    def state(self) -> dict[str, Any]:
        return {
            "without_variance": self._without_variance,
            "skipped_in_a_row": self._skipped_in_a_row,
            "updates_made": self._updates_made,
            "updates_skipped": self._updates_skipped,
            "kept": sorted(self._kept),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self._without_variance, self._skipped_in_a_row = state["without_variance"], state["skipped_in_a_row"]
        self._updates_made, self._updates_skipped = state["updates_made"], state["updates_skipped"]
        self._kept = set(state["kept"])

    def rollout(self, without_variance: float) -> None:
        """Called with each rollout's share of groups whose rewards do not differ."""
        self._variance = without_variance < 1 or (self._variance and not self._fresh)
        self._fresh = False

    def scores(self, found: bool, rewards: Sequence[str]) -> None:
        """Called with each rollout: whether any sample has a score of these rewards. Raises UserError where the first
        rollouts have none."""
        self._scored |= found
        if self._scored:
            return
        self._unscored_rollouts += 1
        said = f"update {self._number}: no sample has a score; {' and '.join(rewards)} applied to no prompt so far"
        if self._unscored_rollouts == UNSCORED_ROLLOUTS:
            raise UserError(f"{said}. Give the prompts what the rewards need, such as metadata (docs/rewards.md).")
        logger.warning("%s", said)

    def micro_batch(self, loss: Tensor, forwards: MicroBatch) -> None:
        """Called with the forward passes of each micro-batch and its loss on this rank."""
        self._batches.append(forwards)
        self._losses.append(loss)

    def update(self, loss: Tensor, metrics: Mapping[str, float], mismatch: RunError | None, of: str = "") -> Tensor:
        """Called before the last backward pass of an update, with the last loss, and the metrics of all micro-batches
        and ranks. mismatch: the replayed policy is not the one that drew. of: what stands before the names of metrics
        that limits are for, "text/" where no episode draws. Returns the loss to go on with."""
        if not math.isfinite(metrics["loss"]):
            bad = [batch for batch, own in zip(self._batches, self._losses, strict=True) if not torch.isfinite(own)]
            self._not_finite(f"the loss is {metrics['loss']}", bad)
        elif mismatch is not None:
            self._act("step1", self.section.step1, mismatch, self._batches)
        self._without_variance = 0 if self._variance else self._without_variance + 1
        for name, sentence in self._exceeded(metrics, of):
            self._act(name, self.section.action, RunError(f"update {self._number}: {sentence}"), self._batches)
        return loss * math.nan if self._skip and makes_updates_itself(self.trainer) else loss

    def require_updates(self) -> None:
        """Raises RunError where updates were skipped and none was made: there is no trained model."""
        if self._updates_skipped and not self._updates_made:
            raise RunError(
                f"all {self._updates_skipped} updates were skipped, so nothing was learnt and no model is exported."
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Counts on from where a resumed run was. Raises UserError where the engine cannot skip an update."""
        if cannot_skip_updates(self.trainer):
            for name in ("nonfinite", "step1", "action"):
                if getattr(self.section, name) == "skip":
                    raise UserError(
                        f"watch.{name} is skip, which DeepSpeed without ZeRO cannot do; choose stop or warn."
                    )
        super().on_train_begin(args, state, control, **kwargs)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        made = makes_updates_itself(self.trainer)  # by now
        if made:
            finite = self._skip or not left_out_update(self.trainer)
        else:
            gradients = [p.grad for p in self.trainer.model.parameters() if p.grad is not None]
            finite = not gradients or bool(torch.stack([gradient.isfinite().all() for gradient in gradients]).all())
        if not finite and not self._reported:
            self._not_finite("a gradient is not finite", self._batches)
        skipped = self._skip or (made and not finite)
        if skipped and not made:
            # Without gradients the optimizer leaves weights and moments as they are.
            self.trainer.model.zero_grad(set_to_none=True)
        self._end_update(skipped)

    def _end_update(self, skipped: bool) -> None:
        self._batches, self._losses, self._skip, self._reported, self._fresh = [], [], False, False, True
        self._updates_made += not skipped
        self._updates_skipped += skipped
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
        if self._skipped_in_a_row >= self.section.skip_limit:
            raise RunError(
                f"update {self._number}: {self._skipped_in_a_row} updates in a row were skipped (watch.skip_limit is "
                f"{self.section.skip_limit}); what was wrong with them is said above."
            )

    @property
    def _number(self) -> int:
        """Of the update under way."""
        return self.trainer.state.global_step + 1

    def _exceeded(self, metrics: Mapping[str, float], of: str) -> Iterator[tuple[str, str]]:
        """Names of the limits that the update is past, and what to say of each."""
        section = self.section
        if section.no_variance_steps is not None and self._without_variance >= section.no_variance_steps:
            yield (
                "no_variance_steps",
                f"no group's rewards have differed for {self._without_variance} updates: nothing can be learnt",
            )
        # A policy that is NaN is past neither: its loss has been seen. There is no KL without a reference, and neither
        # of bits in an update without pictures.
        unit = "token" if of else "bit"
        kl, entropy = (metrics.get(f"{of}{name}", math.nan) for name in ("kl", "entropy"))
        if section.kl_limit is not None and kl > section.kl_limit:
            yield "kl_limit", f"{of}kl is {kl:.3g} nats per {unit}, past watch.kl_limit {section.kl_limit:g}"
        if section.entropy_limit is not None and entropy < section.entropy_limit:
            yield (
                "entropy_limit",
                f"{of}entropy is {entropy:.3g} nats per {unit}, past watch.entropy_limit {section.entropy_limit:g}",
            )

    def _not_finite(self, what: str, batches: list[MicroBatch]) -> None:
        self._reported = True
        # Under DeepSpeed it will be skipped whatever the recipe says.
        action = self.section.nonfinite
        if action == "warn" and makes_updates_itself(self.trainer):
            action = "skip"
        self._act("nonfinite", action, RunError(f"update {self._number}: {what}"), batches)

    def _act(self, name: str, action: WatchAction, error: RunError, batches: list[MicroBatch]) -> None:
        """`name`: of the setting that was passed. Its batch is kept the first time."""
        kept = "" if name in self._kept else f"; its batch is in {self._save(batches)}"
        self._kept.add(name)
        if action == "stop":
            raise type(error)(f"{error}{kept}.")
        self._skip = self._skip or action == "skip"
        logger.warning("%s%s; the update is %s.", error, kept, "skipped" if action == "skip" else "made all the same")

    def _save(self, batches: list[MicroBatch]) -> Path:
        """The tensors of this rank's micro-batches, for study: a file each. Returns their folder."""
        step, rank = self._number, self.trainer.accelerator.process_index
        folder = Path(self.trainer.args.output_dir) / BAD_BATCHES
        folder.mkdir(parents=True, exist_ok=True)
        for number, batch in enumerate(batches):
            tensors = {
                name: tensor.detach().cpu().clone()
                for place, forward in enumerate(batch)
                if forward.places
                for name, tensor in (
                    *named_tensors(forward.rows(), f"{forward.name}-{place}"),
                    (f"{forward.name}-{place}.advantages", forward.advantages),
                )
            }
            save_file(tensors, folder / f"step-{step:06d}-rank-{rank}-{number}.safetensors")
        return folder
