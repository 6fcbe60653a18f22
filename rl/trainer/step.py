"""One step of GRPO (arXiv 2402.03300) on visual bits, from top to bottom.

`collect` makes what an update is trained on: it draws, decodes and scores samples, replays them, and turns their scores
into advantages. `loss` is what each micro-batch of the update minimises. TRL calls both (rl/trainer/trainer.py), and
has the optimizer, the accumulation of gradients and the engine.

Shapes: B samples of this process · T visual tokens · L levels · S patches per token · K bits per code.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewards import RewardTable
from rl.algorithm.advantages import compute_advantages, group_deviations
from rl.algorithm.guidance import Gaps
from rl.algorithm.losses import METRICS, LossInputs, policy_loss
from rl.algorithm.metrics import Kind, UpdateMetrics
from rl.config.recipe import blamed_on
from rl.config.sections import Recipe
from rl.distributed.sharing import gathered
from rl.policy.completion import Completion, completions_of
from rl.policy.dynamic_sampling import DynamicSampling
from rl.policy.reference import Reference
from rl.policy.rollout import Drawn, branches, draw
from rl.policy.samples import DrawSettings, Sample
from rl.policy.text_kl import TextKL
from rl.scoring.scorer import Scorer, Scores
from rl.scoring.straddling import begin_in_groups
from rl.trainer.extensions.collection import TrainerExtensions
from rl.trainer.extensions.text_term import TextTerm
from rl.trainer.groups import GroupRecorder, GroupsSeen
from rl.trainer.step1_check import PARTS, compared, mismatch_of, parts
from rl.trainer.train_batch import TrainBatch, joined
from rl.trainer.watch import Watch
from uniar.generation import Rollout

if TYPE_CHECKING:
    from rl.trainer.resumable import ResumableGRPOTrainer

ScoresSeen = Callable[[list[Sample], RewardTable], None]


class Step:
    """What a step needs, and the step. `trainer` lends the model, the processes, the clock and the log."""

    def __init__(
        self,
        trainer: "ResumableGRPOTrainer",
        recipe: Recipe,
        processor: Any,
        scorer: Scorer,
        watch: Watch,
        reference: Reference | None,
        text_kl: TextKL | None,
        extensions: TrainerExtensions,
        scores_seen: ScoresSeen,
        groups_seen: GroupsSeen,
    ) -> None:
        """scores_seen: called with the samples of this process and their scores, once per rollout. groups_seen: see
        `GroupRecorder`."""
        self.trainer, self.recipe, self.processor, self.scorer = trainer, recipe, processor, scorer
        self.watch, self.reference, self.scores_seen = watch, reference, scores_seen
        self.text = None if text_kl is None else TextTerm(trainer, text_kl, reference)
        self.settings, self.guidance = DrawSettings.for_training(recipe), recipe.rollout.guidance_settings
        self.loss_settings, self.kl_control = recipe.algorithm.loss_settings, extensions.kl_control
        self.groups = GroupRecorder(trainer, recipe, scorer, groups_seen)
        others: dict[str, Kind] = dict.fromkeys(("guidance/mismatch", "understanding/kl", "loss"), "mean")
        self.metrics = UpdateMetrics({**METRICS, **PARTS, **others})
        self.dynamic_sampling: DynamicSampling | None = None
        section = recipe.rollout.dynamic_sampling
        if section is not None and extensions.prompts is not None:
            self.dynamic_sampling = DynamicSampling(section, extensions.prompts, self.processes)

    @property
    def processes(self) -> Any:
        return self.trainer.accelerator

    # Collect ---------------------------------------------------------------------------------------------------------

    def collect(self, samples: list[Sample]) -> TrainBatch:
        """This process's share of a rollout, drawn, scored and replayed.

        samples: B, as many on every process; over the processes in order they are whole groups.
        """
        if self.dynamic_sampling is not None:
            return self._collect_informative(self.dynamic_sampling, len(samples))
        drawn, made, scores = self._draw(samples, len(samples) * self.processes.num_processes)
        # Another process may score while this one replays.
        batch = self._replayed(drawn)
        images, scored = scores()
        self.groups.drawn(samples, made, images, scored)
        table = gathered(scored, self.processes)
        first = self.processes.process_index * len(samples)
        advantages = self._advantages(table, samples, scored)[first : first + len(samples)]
        self.groups.trained(samples, advantages)
        return replace(batch, advantages=advantages)

    def _collect_informative(self, sampling: DynamicSampling, share: int) -> TrainBatch:
        """The same with dynamic sampling: groups whose scores do not differ are replaced before anything is
        replayed."""

        def draw_round(samples: list[Sample], count: int) -> tuple[Rollout, RewardTable]:
            drawn, made, scores = self._draw(samples, count)
            images, scored = scores()
            self.groups.drawn(samples, made, images, scored)
            return drawn.rollout, scored

        groups = share * self.processes.num_processes // self.recipe.rollout.samples_per_prompt
        filled = sampling.fill(groups, self.trainer.state.global_step, draw_round, self._deviations)
        self.trainer.record(filled.metrics)
        # Metrics of rewards are those of the first round: what is chosen has more variance, and another mean.
        self._advantages(filled.first.table, filled.first.samples, filled.first.scored)
        with self.trainer.policy() as policy:
            fed = branches(policy, self.processor, filled.samples, self.settings)
        batch = self._replayed(Drawn(*fed, filled.rollout))
        advantages = self._advantages(filled.table)[filled.rows]
        self.groups.trained(filled.samples, advantages)
        return replace(batch, advantages=advantages)

    def _draw(self, samples: list[Sample], count: int) -> tuple[Drawn, list[Completion], Scores]:
        """Bits from the policy as it is; decoding and scoring begins with them. samples: this process's share of
        `count`, in groups that stand together over the processes."""
        step = self.trainer.state.global_step
        with self.trainer.phase("rollout"), self.trainer.policy() as policy:
            drawn = draw(policy, self.processor, samples, self.settings, step=step, return_gaps=True)
            made = completions_of(drawn.rollout.bits, self.settings, policy)
        scores = begin_in_groups(
            self.scorer,
            self.processes,
            made,
            samples,
            group=self.recipe.rollout.samples_per_prompt,
            count=count,
            policy=self.trainer.policy,
            step=step,
            keep=self.groups.pictured(len(samples)),
            phase=self.trainer.phase,
        )
        self.trainer.count_drawn(count, count * drawn.rollout.bits.shape[1])
        return drawn, made, scores

    def _replayed(self, drawn: Drawn) -> TrainBatch:
        """With the gaps, teacher-forced, of the old policy, where one is needed, and of the reference."""
        batch = TrainBatch(drawn.rollout.bits, drawn.prompt, drawn.unconditional, drawn.gaps)
        with self.trainer.phase("replay"):
            if self.trainer.serves_several_updates and self.recipe.algorithm.old_logp == "replay":
                batch = replace(batch, old=self._replay(self.trainer.model, batch))
            if self.recipe.algorithm.beta and self.reference is not None:
                with self.reference.ready(self.trainer.model, self.processes) as reference:
                    batch = replace(batch, reference=self._replay(reference, batch))
        return batch

    def _replay(self, model: Any, batch: TrainBatch) -> Gaps:
        """Without gradient, in the micro-batches of the update."""
        parts = batch.micro_batches(self.trainer.args.per_device_train_batch_size)
        with torch.no_grad(), self.processes.autocast():
            return joined([part.replay(model, self.guidance) for part in parts])

    def _advantages(
        self, table: RewardTable, samples: list[Sample] | None = None, scored: RewardTable | None = None
    ) -> Tensor:
        """(W·B,) advantages of the samples of all W processes, in whole groups. With this process's `samples` and their
        scores the metrics are logged too."""
        settings = self.recipe.algorithm.advantage
        advantages, metrics = compute_advantages(
            self.scorer.rewards.terms(table.values),
            table.weights,
            group_size=self.recipe.rollout.samples_per_prompt,
            estimator=settings.estimator,
            scale=settings.scale,
            names=table.names,
            measured=table.values,
        )
        if samples is not None and scored is not None:
            self.trainer.record(metrics)
            self.trainer.record({f"rewards/{name}/failed": count for name, count in table.failures.items()})
            # Without any score there is no variance either.
            self.watch.rollout(metrics.get("frac_reward_zero_std", 1.0))
            self.scores_seen(samples, scored)
        return advantages.to(self.processes.device, torch.float32)

    def _deviations(self, table: RewardTable) -> Tensor:
        return group_deviations(
            self.scorer.rewards.terms(table.values),
            table.weights,
            group_size=self.recipe.rollout.samples_per_prompt,
            estimator=self.recipe.algorithm.advantage.estimator,
        )

    # Loss ------------------------------------------------------------------------------------------------------------

    def loss(self, model: Any, batch: TrainBatch) -> Tensor:
        """The loss of a micro-batch, with gradient."""
        settings, policy_gap = self.loss_settings, self.guidance.policy_gap
        if self.kl_control is not None:
            settings = replace(settings, beta=self.kl_control.beta)
        # Text before bits: DDP takes the parameters in use to be those of the last forward, and drawing uses them all.
        divergence = None if self.text is None else self.text.divergence(model)
        gap, drawn_gap = policy_gap(batch.replay(model, self.guidance)), policy_gap(batch.drawn)
        found = self._compared_with_rollout(batch, gap.detach(), drawn_gap) if self.trainer.is_first_pass else {}
        replayed = gap.detach() if batch.old is None else policy_gap(batch.old)
        inputs = LossInputs(
            bits=batch.bits,
            gap=gap,
            old_gap=drawn_gap if self.recipe.algorithm.old_logp == "rollout" else replayed,
            ref_gap=None if batch.reference is None else policy_gap(batch.reference),
            advantages=batch.advantages,
        )
        with blamed_on(self.recipe, "algorithm.loss"):
            loss, metrics = policy_loss(inputs, settings)
        loss = loss * self.recipe.algorithm.loss_scale
        if self.text is not None:
            found["understanding/kl"] = loss.new_zeros(()) if divergence is None else divergence
            loss = loss if divergence is None else loss + self.text.kl.beta * divergence
        self.metrics.add({**metrics, **found, "loss": loss}, count=len(batch.bits))
        self.watch.micro_batch(loss.detach(), batch)
        if self.processes.sync_gradients:
            loss = self._end_of_update(loss)
        return loss / self.trainer.current_gradient_accumulation_steps

    def _end_of_update(self, loss: Tensor) -> Tensor:
        """Before the last backward pass of an update: its metrics are logged, and looked at. Returns the loss to go on
        with."""
        found, mismatch = self.metrics.reduce(self.processes), None
        metrics = {name: value for name, value in found.items() if name not in PARTS}
        if PARTS.keys() <= found.keys():
            metrics |= compared(found)
        if self.trainer.is_first_rollout:
            precision = torch.bfloat16 if self.trainer.args.bf16 else self.trainer.bare_policy.dtype
            mismatch = mismatch_of(metrics, self.recipe, precision)
        loss = self.watch.update(loss, metrics, mismatch)
        if self.kl_control is not None:
            self.kl_control.measure(metrics["kl"])
            metrics["beta"] = self.kl_control.beta
        del metrics["loss"]
        self.trainer.record(metrics, self.metrics.kinds)
        return loss

    def _compared_with_rollout(self, batch: TrainBatch, gap: Tensor, drawn_gap: Tensor) -> dict[str, Tensor]:
        """What lies between rollout and replay: nothing but rounding, where all is well."""
        found = parts(gap, drawn_gap)
        if self.guidance.is_biased:
            found["guidance/mismatch"] = self.guidance.mismatch(batch.drawn).mean()
        return found
