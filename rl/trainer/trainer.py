"""The trainer: TRL's GRPOTrainer as chassis, with the two seams where visual bits differ from text.

`_generate_and_score_completions` draws, decodes and scores a rollout; `_compute_loss` replays it and takes the loss.
Everything else (batches, groups over ranks, optimizer, accumulation, DeepSpeed, logging) is TRL's and transformers', as
rl/trainer/resumable.py extends it. tests/rl/test_trl_contract.py fails when what is relied on here changes.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback
from trl import GRPOConfig

from rewards import RewardTable
from rl.algorithm.advantages import compute_advantages, group_deviations
from rl.algorithm.guidance import conditional_mismatch, policy_gap
from rl.algorithm.losses import METRICS, LossInputs, policy_loss
from rl.algorithm.metrics import UpdateMetrics
from rl.config.sections import Recipe
from rl.data.prompts import PromptRecord
from rl.distributed.sharing import gathered
from rl.policy.dynamic_sampling import DynamicSampling
from rl.policy.reference import Reference
from rl.policy.replay import Branch, Gaps, replay
from rl.policy.rollout import Drawn, DrawSettings, Sample, branches, draw
from rl.policy.text_kl import TextKL
from rl.scoring.groups import begin_in_groups
from rl.scoring.scorer import Scorer, Scores
from rl.trainer.features import Features
from rl.trainer.resumable import Chassis
from rl.trainer.step1_check import PARTS, compared, mismatch_of, parts
from rl.trainer.watch import Watch
from uniar.generation import Rollout

if TYPE_CHECKING:
    from uniar.modeling_uniar import UniARForConditionalGeneration


class UniARTrainer(Chassis):
    """GRPO on visual bits, as a recipe describes it."""

    def __init__(
        self,
        recipe: Recipe,
        args: GRPOConfig,
        model: "UniARForConditionalGeneration",
        processor: Any,
        scorer: Scorer,
        records: Sequence[PromptRecord],
        watch: Watch,
        reference: Reference | None = None,
        text_kl: TextKL | None = None,
        features: Features | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        only_weights: bool = False,
    ) -> None:
        self.recipe, self.scorer, self.records = recipe, scorer, list(records)
        self.watch, self.reference, self.text_kl = watch, reference, text_kl
        self.features = features or Features()
        self.settings = DrawSettings.for_training(recipe)
        self.processor = processor
        self.last_scored: tuple[list[Sample], RewardTable] | None = None
        self._first_rollout_step: int | None = None
        others = {"guidance/mismatch": "mean", "understanding/kl": "mean", "loss": "mean"}
        self._of_update = UpdateMetrics({**METRICS, **PARTS, **others})
        prompts = Dataset.from_dict(
            {"prompt": [record.prompt for record in self.records], "number": list(range(len(self.records)))}
        )
        super().__init__(
            model=model,
            reward_funcs=[_scores_come_from_the_suite],
            args=args,
            train_dataset=prompts,
            processing_class=processor,
            keepers=[*self.features.keepers, watch],
            callbacks=callbacks,
            only_weights=only_weights,
        )
        self.dynamic_sampling: DynamicSampling | None = None
        if (prompts := self.features.prompts) is not None:
            self.dynamic_sampling = DynamicSampling(recipe.rollout.dynamic_sampling, prompts, self.accelerator)

    def evaluated_weights(self) -> AbstractContextManager:
        """The weights that the recipe has evaluated and exported are the policy's inside the block. Collective."""
        return self.features.average.in_place() if self.recipe.evaluate.ema else nullcontext()

    # Rollout ---------------------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """A rank's share of a rollout → the dictionary that TRL shuffles and splits into micro-batches by sample."""
        if self._first_rollout_step is None:
            self._first_rollout_step = self._logged_step = self.state.global_step
        return self._one_round(inputs) if self.dynamic_sampling is None else self._chosen_groups(len(inputs))

    def _one_round(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        # TRL hands every rank a contiguous share of the global batch, in which a prompt's G rows stand together.
        offset, group = self.accelerator.process_index * len(inputs), self.recipe.rollout.samples_per_prompt
        samples = [Sample(self.records[row["number"]], (offset + place) % group) for place, row in enumerate(inputs)]
        drawn, scores = self._draw(samples, len(samples) * self.accelerator.num_processes)
        # Another process may score while this one replays.
        batch = self._replayed(drawn.prompt, drawn.twin, drawn.rollout)
        _, scored = scores()
        table = gathered(scored, self.accelerator)
        advantages, metrics = self._advantages(table)
        self._record_scores(samples, scored, table, metrics)
        return batch | {"advantages": advantages[offset : offset + len(inputs)]}

    def _chosen_groups(self, share: int) -> dict[str, Any]:
        group, ranks = self.recipe.rollout.samples_per_prompt, self.accelerator.num_processes

        def draw_round(samples: list[Sample], count: int) -> tuple[Rollout, RewardTable]:
            drawn, scores = self._draw(samples, count)
            return drawn.rollout, scores()[1]

        filled = self.dynamic_sampling.fill(
            share * ranks // group, self.state.global_step, draw_round, self._deviations
        )
        # Metrics of rewards are those of the first round: what is chosen has more variance, and another mean.
        _, metrics = self._advantages(filled.first.table)
        self._record_scores(filled.first.samples, filled.first.scored, filled.first.table, metrics)
        self._record(filled.metrics)
        advantages, _ = self._advantages(filled.table)
        prompt, twin = branches(self.bare_policy, self.processor, filled.samples, self.settings)
        return self._replayed(prompt, twin, filled.rollout) | {"advantages": advantages[filled.rows]}

    def _draw(self, samples: list[Sample], count: int) -> tuple[Drawn, Scores]:
        """This rank's share of `count` samples, whose groups stand together over the ranks."""
        step, group = self.state.global_step, self.recipe.rollout.samples_per_prompt
        with self.phase("rollout"), self.policy() as policy:
            drawn = draw(policy, self.processor, samples, self.settings, step=step, return_gaps=True)
        groups, bits = {"group": group, "count": count, "policy": self.policy}, drawn.rollout.bits
        scores = begin_in_groups(self.scorer, self.accelerator, bits, samples, **groups, step=step, phase=self.phase)
        return drawn, scores

    def _replayed(self, prompt: Branch, twin: Branch | None, rollout: Rollout) -> dict[str, Any]:
        """What the update needs of B samples but their advantages, every entry indexed by sample."""
        batch = {
            **prompt.to_dict("prompt_"),
            **({} if twin is None else twin.to_dict("twin_")),
            "bits": rollout.bits,
            **_named("rollout_", Gaps(rollout.gap_cond, rollout.gap_uncond)),
        }
        with self.phase("replay"):
            if self._serves_several_updates and self.recipe.algorithm.old_logp == "replay":
                batch |= _named("old_", self._replay_all(self.model, batch))
            if self.recipe.algorithm.beta:
                with self.reference.ready(self.model, self.accelerator) as reference:
                    batch |= _named("ref_", self._replay_all(reference, batch))
        return batch

    def _advantages(self, table: RewardTable) -> tuple[Tensor, dict[str, float]]:
        """(B,) advantages of all ranks' samples in whole groups, and the metrics of their rewards."""
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
        return advantages.to(self.accelerator.device, torch.float32), metrics

    def _deviations(self, table: RewardTable) -> Tensor:
        return group_deviations(
            self.scorer.rewards.terms(table.values),
            table.weights,
            group_size=self.recipe.rollout.samples_per_prompt,
            estimator=self.recipe.algorithm.advantage.estimator,
        )

    def _record_scores(
        self, samples: list[Sample], scored: RewardTable, table: RewardTable, metrics: dict[str, float]
    ) -> None:
        """scored: this rank's samples. table: all ranks'."""
        self.last_scored = (samples, scored)
        self._record(metrics)
        self._record({f"rewards/{name}/failed": count for name, count in table.failures.items()})
        # Without any score there is no variance either.
        self.watch.rollout(metrics.get("frac_reward_zero_std", 1.0))

    def _replay_all(self, model: Any, batch: dict[str, Any]) -> Gaps:
        """Raw gaps of the whole share without gradient, in the micro-batches of the update."""
        size, parts = self.args.per_device_train_batch_size, []
        for start in range(0, len(batch["bits"]), size):
            part = {key: value[start : start + size] for key, value in batch.items()}
            with torch.no_grad(), self.accelerator.autocast():
                parts.append(self._replay(model, part))
        uncond = None if parts[0].uncond is None else torch.cat([part.uncond for part in parts])
        return Gaps(torch.cat([part.cond for part in parts]), uncond)

    def _replay(self, model: Any, batch: dict[str, Any]) -> Gaps:
        prompt, twin = Branch.from_dict(batch, "prompt_"), Branch.from_dict(batch, "twin_")
        return replay(model, batch["bits"], prompt, twin, self.recipe.rollout.guidance)

    # Loss ------------------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        algorithm, kl_control, bits = self.recipe.algorithm, self.features.kl_control, inputs["bits"]
        # Text before bits: DDP takes the parameters in use to be those of the last forward, and drawing uses them all.
        divergence = None if self.text_kl is None else self._text_divergence(model)
        gap = self._policy_gap(self._replay(model, inputs))
        drawn_with = self._policy_gap(_from(inputs, "rollout_"))
        found: dict[str, Tensor] = {}
        if self._step % self._micro_batches_of_rollout < self.args.gradient_accumulation_steps:
            found |= self._compared_with_rollout(gap.detach(), drawn_with, inputs)
        if algorithm.old_logp == "rollout":
            old_gap = drawn_with
        else:
            old = _from(inputs, "old_")
            old_gap = gap.detach() if old is None else self._policy_gap(old)
        reference = _from(inputs, "ref_")
        loss, metrics = policy_loss(
            LossInputs(
                bits=bits,
                gap=gap,
                old_gap=old_gap,
                ref_gap=None if reference is None else self._policy_gap(reference),
                advantages=inputs["advantages"],
            ),
            loss=algorithm.loss,
            level=algorithm.level,
            centred=algorithm.centred_ratio,
            epsilon=algorithm.epsilon,
            epsilon_high=algorithm.epsilon_high,
            delta=algorithm.delta,
            beta=algorithm.beta if kl_control is None else kl_control.beta,
            kl=algorithm.kl,
            entropy_coef=algorithm.entropy_coef,
            importance_cap=algorithm.importance_cap if algorithm.old_logp == "rollout" else None,
        )
        loss = loss * algorithm.loss_scale
        if self.text_kl is not None:
            found["understanding/kl"] = loss.new_zeros(()) if divergence is None else divergence
            loss = loss if divergence is None else loss + self.text_kl.beta * divergence
        self._of_update.add({**metrics, **found, "loss": loss}, count=len(bits))
        self.watch.micro_batch(loss.detach(), inputs)
        if self.accelerator.sync_gradients:
            loss = self._end_of_update(loss)
        return loss / self.current_gradient_accumulation_steps

    def _end_of_update(self, loss: Tensor) -> Tensor:
        """Before the last backward pass of an update: its metrics are logged, and looked at. Returns the loss to go on
        with."""
        found, kl_control, mismatch = self._of_update.reduce(self.accelerator), self.features.kl_control, None
        metrics = {name: value for name, value in found.items() if name not in PARTS}
        if PARTS.keys() <= found.keys():
            metrics |= compared(found)
        if self.state.global_step == self._first_rollout_step:
            precision = torch.bfloat16 if self.args.bf16 else self.bare_policy.dtype
            mismatch = mismatch_of(metrics, self.recipe, precision)
        loss = self.watch.update(loss, metrics, mismatch)
        if kl_control is not None:
            kl_control.measure(metrics["kl"])
            metrics["beta"] = kl_control.beta
        del metrics["loss"]
        self._record(metrics, self._of_update.kinds)
        return loss

    def _text_divergence(self, model: Any) -> Tensor | None:
        """This micro-batch's part of the text-KL term; None where it has none."""
        text, accelerator = self.text_kl, self.accelerator
        if text.update != self.state.global_step:
            with (
                self.phase("text"),
                self.reference.ready(self.model, accelerator) as reference,
                accelerator.autocast(),
            ):
                text.begin(
                    self.state.global_step,
                    reference,
                    accelerator.device,
                    process=accelerator.process_index,
                    processes=accelerator.num_processes,
                    micro_batches=self.current_gradient_accumulation_steps,
                )
        return text.divergence(model)

    def _policy_gap(self, gaps: Gaps) -> Tensor:
        drawn = self.recipe.rollout
        return policy_gap(
            gaps.cond, gaps.uncond, convention=drawn.guidance, scale=drawn.guidance_scale, temperature=drawn.temperature
        )

    def _compared_with_rollout(self, gap: Tensor, drawn_with: Tensor, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """What lies between rollout and replay."""
        drawn, found = self.recipe.rollout, parts(gap, drawn_with)
        if drawn.guidance == "conditional":
            raw = _from(inputs, "rollout_")
            mismatch = conditional_mismatch(raw.cond, raw.uncond, drawn.guidance_scale, drawn.temperature)
            found["guidance/mismatch"] = mismatch.mean()
        return found


def _named(prefix: str, gaps: Gaps) -> dict[str, Tensor]:
    return {f"{prefix}{name}": gap for name, gap in gaps._asdict().items() if gap is not None}


def _from(batch: dict[str, Any], prefix: str) -> Gaps | None:
    return Gaps(batch[f"{prefix}cond"], batch.get(f"{prefix}uncond")) if f"{prefix}cond" in batch else None


def _scores_come_from_the_suite(**_: Any) -> list[float]:
    """TRL wants a reward function at construction; the seam above never calls it."""
    raise RuntimeError("UniARTrainer scores with its RewardSuite.")
