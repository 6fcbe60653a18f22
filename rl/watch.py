"""Watches a run for what goes wrong, and warns, skips the update, or stops, as the recipe says."""

import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rl.config import WatchAction, WatchSection
from uniar.errors import RunError, UserError

if TYPE_CHECKING:
    from rl.trainer import UniARTrainer

logger = logging.getLogger(__name__)


class Watch(TrainerCallback):
    """Sees every rollout's rewards, every micro-batch's loss, KL and entropy, every update's gradients: before the
    update is made.

    What is judged by (the mean over the ranks of) a metric is the same on all ranks; a loss that is not finite may be
    one rank's, its gradient is everyone's. DeepSpeed makes no update with such a gradient by itself, and is told by one
    to skip others.
    """

    def __init__(self, section: WatchSection) -> None:
        self.section = section
        self.trainer: UniARTrainer | None = None
        self._batches: list[dict[str, Any]] = []  # of the update under way
        self._means: dict[str, list[float]] = {"kl": [], "entropy": []}
        self._skip = self._reported = False
        self._past: set[str] = set()  # limits that the last update was past
        self._without_variance = 0
        self._variance, self._fresh = False, True

    def attach(self, trainer: "UniARTrainer") -> None:
        """Called once, when the trainer exists."""
        self.trainer = trainer

    def rollout(self, without_variance: float) -> None:
        """Called with each rollout's share of groups whose rewards do not differ."""
        self._variance = without_variance < 1 or (self._variance and not self._fresh)
        self._fresh = False

    def loss(self, loss: Tensor, batch: dict[str, Any], metrics: Mapping[str, float]) -> Tensor:
        """Called with each micro-batch: its loss and metrics, means over the ranks. Returns the loss to go on with."""
        self._batches.append(batch)
        if not torch.isfinite(loss):
            self._not_finite(f"the loss is {loss.item()}", [batch])
            self._reported = True
        for name, values in self._means.items():
            if name in metrics:  # there is no KL without a reference
                values.append(metrics[name])
        if not self.trainer.accelerator.sync_gradients:
            return loss
        self._check_limits()
        return loss * math.nan if self._skip and self.trainer.is_deepspeed_enabled else loss

    def mismatch(self, error: RunError, batch: dict[str, Any]) -> None:
        """Called where the policy of the first update is not the one that drew."""
        self._act("step1", self.section.step1, error, [batch])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Counts on from where a resumed run was. Raises UserError where the engine cannot skip an update."""
        if self.trainer.is_deepspeed_enabled and not hasattr(self.trainer.model_wrapped.optimizer, "overflow"):
            for name in ("nonfinite", "step1", "action"):
                if getattr(self.section, name) == "skip":
                    raise UserError(
                        f"watch.{name} is skip, which DeepSpeed without ZeRO cannot do; choose stop or warn."
                    )
        shares = [line["frac_reward_zero_std"] for line in state.log_history if "frac_reward_zero_std" in line]
        while shares and shares.pop() == 1:
            self._without_variance += args.logging_steps

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.trainer.is_deepspeed_enabled:  # which has made its step, or skipped it, by now
            finite = self._skip or not getattr(self.trainer.model_wrapped.optimizer, "overflow", False)
        else:
            gradients = [p.grad for p in self.trainer.model.parameters() if p.grad is not None]
            finite = not gradients or bool(torch.stack([gradient.isfinite().all() for gradient in gradients]).all())
        if not finite and not self._reported:
            self._not_finite("a gradient is not finite", self._batches)
        skip = self._skip or (not finite and self.section.nonfinite == "skip")
        if skip and not self.trainer.is_deepspeed_enabled:
            # Without gradients the optimizer leaves weights and moments as they are.
            self.trainer.model.zero_grad(set_to_none=True)
        self._begin_update()

    def _begin_update(self) -> None:
        self._batches, self._skip, self._reported, self._fresh = [], False, False, True
        for values in self._means.values():
            values.clear()

    def _check_limits(self) -> None:
        """Of the update whose last micro-batch has been seen."""
        self._without_variance = 0 if self._variance else self._without_variance + 1
        step, limits = self.trainer.state.global_step + 1, dict(self._exceeded())
        for name, sentence in limits.items():
            self._act(name, self.section.action, RunError(f"update {step}: {sentence}"), self._batches)
        self._past = set(limits)

    def _exceeded(self) -> Iterator[tuple[str, str]]:
        """Names of the limits that the update is past, and what to say of each."""
        section = self.section
        if section.no_variance_steps is not None and self._without_variance >= section.no_variance_steps:
            yield (
                "no_variance_steps",
                f"no group's rewards have differed for {self._without_variance} updates: nothing can be learnt",
            )
        # A policy that is NaN is past neither: its loss has been seen.
        kl, entropy = (sum(values) / len(values) if values else math.nan for values in self._means.values())
        if section.kl_limit is not None and kl > section.kl_limit:
            yield "kl_limit", f"kl is {kl:.3g} nats a bit, past watch.kl_limit {section.kl_limit:g}"
        if section.entropy_limit is not None and entropy < section.entropy_limit:
            yield (
                "entropy_limit",
                f"entropy is {entropy:.3g} nats a bit, past watch.entropy_limit {section.entropy_limit:g}",
            )

    def _act(self, name: str, action: WatchAction, error: RunError, batches: list[dict[str, Any]]) -> None:
        """`name`: of the setting that was passed. Its batch is kept the first time in a row."""
        kept = "" if name in self._past else f"; its batch is in {self._save(batches)}"
        if action == "stop":
            raise type(error)(f"{error}{kept}.")
        self._skip = self._skip or action == "skip"
        logger.warning("%s%s; the update is %s.", error, kept, "skipped" if action == "skip" else "made all the same")

    def _not_finite(self, what: str, batches: list[dict[str, Any]]) -> None:
        saved, action = self._save(batches), self.section.nonfinite
        sentence = f"update {self.trainer.state.global_step + 1}: {what}; its batch is in {saved}"
        if action == "stop":
            raise RunError(f"{sentence}.")
        skipped = action == "skip" or self.trainer.is_deepspeed_enabled
        logger.warning("%s; the update is %s.", sentence, "skipped" if skipped else "made all the same")

    def _save(self, batches: list[dict[str, Any]]) -> Path:
        """The tensors of this rank's micro-batches, for study: a file each. Returns their folder."""
        step, rank = self.trainer.state.global_step + 1, self.trainer.accelerator.process_index
        folder = Path(self.trainer.args.output_dir) / "bad_batches"
        folder.mkdir(parents=True, exist_ok=True)
        for number, batch in enumerate(batches):
            tensors = {}
            for name, value in batch.items():
                rows = {f"{name}.{row}": part for row, part in enumerate(value)} if isinstance(value, list) else {}
                for part, tensor in (rows or {name: value}).items():
                    if isinstance(tensor, Tensor):
                        tensors[part] = tensor.detach().cpu().clone()
            save_file(tensors, folder / f"step-{step:06d}-rank-{rank}-{number}.safetensors")
        return folder
