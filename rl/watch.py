"""Watches a run for what goes wrong, and warns, skips the update, or stops, as the recipe says."""

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rl.config import WatchSection
from uniar.errors import RunError

if TYPE_CHECKING:
    from rl.trainer import UniARTrainer

logger = logging.getLogger(__name__)


class Watch(TrainerCallback):
    """Sees every micro-batch's loss, every update's gradients, and every log line."""

    def __init__(self, section: WatchSection) -> None:
        self.section = section
        self.trainer: UniARTrainer | None = None
        self._without_variance = 0
        self._last_batch: dict[str, Any] | None = None

    def attach(self, trainer: "UniARTrainer") -> None:
        """Called once, when the trainer exists."""
        self.trainer = trainer

    def loss(self, loss: Tensor, batch: dict[str, Any]) -> None:
        """Called by the trainer with each micro-batch. DeepSpeed hides gradients, so there a bad loss always stops."""
        self._last_batch = batch
        if not torch.isfinite(loss) and (self.section.nonfinite == "stop" or self.trainer.is_deepspeed_enabled):
            self._not_finite(f"the loss is {loss.item()}")

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        gradients = [p.grad for p in self.trainer.model.parameters() if p.grad is not None]
        if all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            return
        self._not_finite("a gradient is not finite")
        if self.section.nonfinite == "skip":
            # Without gradients the optimizer leaves weights and moments as they are.
            self.trainer.model.zero_grad(set_to_none=True)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        if "frac_reward_zero_std" in logs:
            self._without_variance = self._without_variance + 1 if logs["frac_reward_zero_std"] == 1 else 0
        limit = self.section.no_variance_steps
        if limit is not None and self._without_variance >= limit:
            self._act(f"no group's rewards have differed for {self._without_variance} updates: nothing can be learnt")
        for name, key, bound, beyond in (
            ("kl_limit", "kl", self.section.kl_limit, lambda value, bound: value > bound),
            ("entropy_limit", "entropy", self.section.entropy_limit, lambda value, bound: value < bound),
        ):
            value = logs.get(key)
            if bound is not None and value is not None and (math.isnan(value) or beyond(value, bound)):
                self._act(f"{key} is {value:.3g} nats a bit, past watch.{name} {bound:g}")

    def _not_finite(self, what: str) -> None:
        saved = self._save_batch()
        sentence = f"update {self.trainer.state.global_step + 1}: {what}; its batch is in {saved}"
        if self.section.nonfinite == "stop" or self.trainer.is_deepspeed_enabled:
            raise RunError(f"{sentence}.")
        done = "the update is skipped" if self.section.nonfinite == "skip" else "the update is made all the same"
        logger.warning("%s; %s.", sentence, done)

    def _act(self, sentence: str) -> None:
        step = self.trainer.state.global_step
        if self.section.action == "stop":
            raise RunError(f"update {step}: {sentence}.")
        logger.warning("update %s: %s.", step, sentence)

    def _save_batch(self) -> Path:
        """The tensors of the last micro-batch, for study."""
        state, rank = self.trainer.state, self.trainer.accelerator.process_index
        path = (
            Path(self.trainer.args.output_dir) / "bad_batches" / f"step-{state.global_step + 1:06d}-{rank}.safetensors"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: value for name, value in (self._last_batch or {}).items() if isinstance(value, Tensor)}
        save_file({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}, path)
        return path
