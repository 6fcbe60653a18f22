"""UniARTrainer: TRL's GRPOTrainer whose seams are one step of GRPO on visual bits and text (rl/trainer/step.py).

Everything else (batches, groups over ranks, optimizer, accumulation, DeepSpeed, logging) is TRL's and transformers', as
rl/trainer/resumable.py extends it. tests/rl/test_trl_contract.py fails when what is relied on here changes.
"""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback
from trl import GRPOConfig

from rl.config.sections import Recipe
from rl.data.prompts import PromptRecord
from rl.episodes.requests import PICTURES, TurnKind
from rl.policy.experts import Experts
from rl.policy.reference import Reference
from rl.policy.samples import Sample
from rl.policy.text_kl import TextKL
from rl.scoring.scorer import Scorer
from rl.trainer.extensions.collection import TrainerExtensions
from rl.trainer.groups import GroupsSeen
from rl.trainer.resumable import ResumableGRPOTrainer
from rl.trainer.step import ScoresSeen, Step
from rl.trainer.train_batch import TrainBatch, in_whole_groups
from rl.trainer.watch import Watch

if TYPE_CHECKING:
    from uniar.modeling_uniar import UniARForConditionalGeneration


class UniARTrainer(ResumableGRPOTrainer):
    """GRPO on visual bits and text tokens, as a recipe describes it."""

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
        extensions: TrainerExtensions | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        only_weights: bool = False,
        turns: Collection[TurnKind] = PICTURES,
        scores_seen: ScoresSeen = lambda samples, scored: None,
        groups_seen: GroupsSeen = lambda step, rows: None,
        experts: Experts | None = None,
    ) -> None:
        """turns: the kinds that the episodes of the records may take. scores_seen: called with this process's samples
        and their scores, once per rollout. groups_seen: see rl/trainer/groups.py. experts: to be distilled."""
        self.recipe, self.records, self.reference = recipe, list(records), reference
        self.extensions = extensions or TrainerExtensions()
        prompts = Dataset.from_dict(
            {"prompt": [record.prompt for record in self.records], "number": list(range(len(self.records)))}
        )
        super().__init__(
            model=model,
            reward_funcs=[_scores_come_from_the_step],
            args=args,
            train_dataset=prompts,
            processing_class=processor,
            stateful_callbacks=[*self.extensions.stateful_callbacks, watch],
            callbacks=callbacks,
            only_weights=only_weights,
        )
        self.step = Step(
            self,
            recipe,
            processor,
            scorer,
            watch,
            reference,
            text_kl,
            self.extensions,
            turns,
            scores_seen,
            groups_seen,
            experts,
        )

    def evaluated_weights(self) -> AbstractContextManager:
        """The weights that the recipe has evaluated and exported are the policy's inside the block. Collective."""
        average = self.extensions.average if self.recipe.evaluate.ema else None
        return nullcontext() if average is None else average.in_place()

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """A rank's share of a rollout → the dictionary that TRL shuffles and splits into micro-batches by sample."""
        self.begin_rollouts()
        return self.step.collect(self._samples(inputs)).to_dict()

    def _prepare_inputs(self, generation_batch: dict[str, Any]) -> dict[str, Any]:
        """A micro-batch. When TRL has split a new rollout into them, they are given their forward passes."""
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is not before:
            of_update = min(self.args.gradient_accumulation_steps, len(self._buffered_inputs))
            batches = in_whole_groups([TrainBatch.from_dict(batch) for batch in self._buffered_inputs], of_update)
            for buffered, batch, own in zip(self._buffered_inputs, batches, self.step.share_out(batches), strict=True):
                buffered |= {**batch.to_dict(), "forwards": own}
        return inputs

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        return self.step.loss(model, inputs["forwards"])

    def _samples(self, rows: list[dict[str, Any]]) -> list[Sample]:
        """TRL hands every rank a contiguous share of the global batch, in which a prompt's G rows stand together."""
        offset, group = self.accelerator.process_index * len(rows), self.recipe.rollout.samples_per_prompt
        return [Sample(self.records[row["number"]], (offset + place) % group) for place, row in enumerate(rows)]


def _scores_come_from_the_step(**_: Any) -> list[float]:
    """TRL wants a reward function at construction; the seam above never calls it."""
    raise RuntimeError("UniARTrainer scores with its RewardSuite.")
