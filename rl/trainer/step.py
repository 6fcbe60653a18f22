"""One step of GRPO (arXiv 2402.03300) on visual bits and text tokens, from top to bottom.

`collect` makes what an update is trained on: samples play their episodes, what they make is decoded and scored, their
turns are replayed, and scores become advantages. `loss` is what each micro-batch of the update minimises. TRL calls
both (rl/trainer/trainer.py), and has the optimizer, the accumulation of gradients and the engine.

Shapes: B samples of this process.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewards import RewardTable
from rl.algorithm.advantages import compute_advantages, group_deviations
from rl.algorithm.guidance import GuidanceSettings
from rl.algorithm.losses import loss_named
from rl.algorithm.metrics import Kind, UpdateMetrics
from rl.config.sections import Recipe
from rl.distributed.sharing import gathered
from rl.episodes.requests import TurnKind
from rl.policy.dynamic_sampling import DynamicSampling
from rl.policy.experts import Experts
from rl.policy.play import play
from rl.policy.reference import Reference
from rl.policy.samples import DrawSettings, Sample
from rl.policy.text_kl import TextKL
from rl.policy.trajectory import Trajectory
from rl.policy.turns import Texts, Turn
from rl.scoring.scorer import Scorer, Scores
from rl.scoring.straddling import begin_in_groups
from rl.trainer.extensions.collection import TrainerExtensions
from rl.trainer.extensions.text_term import TextTerm
from rl.trainer.forwards import Forward, Forwards
from rl.trainer.groups import GroupRecorder, GroupsSeen
from rl.trainer.step1_check import PARTS, TEXT_PARTS, compared, mismatch_of
from rl.trainer.train_batch import TrainBatch
from rl.trainer.turn_loss import MEASURED, TEXT, TurnLoss
from rl.trainer.watch import Watch

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
        turns: Collection[TurnKind],
        scores_seen: ScoresSeen,
        groups_seen: GroupsSeen,
        experts: Experts | None,
    ) -> None:
        """turns: the kinds that the episodes of the prompts may take. scores_seen: called with the samples of this
        process and their scores, once per rollout. groups_seen: see `GroupRecorder`. experts: to be distilled."""
        self.trainer, self.recipe, self.processor, self.scorer = trainer, recipe, processor, scorer
        self.watch, self.scores_seen = watch, scores_seen
        self.text = None if text_kl is None else TextTerm(trainer, text_kl, reference)
        self.settings = replace(DrawSettings.for_training(recipe), decoder=scorer.sizes)
        self.guidance = recipe.rollout.guidance_settings
        self.reference, config = reference if recipe.algorithm.has_kl_term else None, trainer.bare_policy.config
        self.experts = experts or Experts.only(
            self.reference, recipe.algorithm.reference.guidance(self.guidance), config
        )
        self.turn_loss, self.kl_control = TurnLoss(recipe, self.experts), extensions.kl_control
        self.groups = GroupRecorder(trainer, recipe, scorer, groups_seen)
        self.forwards = Forwards(
            self.processes,
            config,
            size=trainer.args.per_device_train_batch_size,
            kinds=turns,
            guided=self.settings.unconditional or self.settings.guidance_scale is not None,
            hidden=self.experts.hidden if self.turn_loss.tokens.kl == "exact" else {},
        )
        others: dict[str, Kind] = dict.fromkeys(("understanding/kl", "loss"), "mean")
        self.metrics = UpdateMetrics({**MEASURED, **others, **self.experts.metrics})
        self.dynamic_sampling: DynamicSampling | None = None
        section = recipe.rollout.dynamic_sampling
        if section is not None and extensions.prompts is not None:
            self.dynamic_sampling = DynamicSampling(section, extensions.prompts, self.processes)

    @property
    def processes(self) -> Any:
        return self.trainer.accelerator

    # Collect ---------------------------------------------------------------------------------------------------------

    def collect(self, samples: list[Sample]) -> TrainBatch:
        """This process's share of a rollout: played, scored and replayed.

        samples: B, as many on every process; over the processes in order they are whole groups.
        """
        if self.experts.teach:
            self.watch.rollout(0.0)  # of each sample there is something to learn
            return TrainBatch(
                self._replayed(self._played(samples)), torch.zeros(len(samples)).to(self.processes.device)
            )
        if self.dynamic_sampling is not None:
            return self._collect_informative(self.dynamic_sampling, len(samples))
        played = self._played(samples)
        if self.reference is not None:
            self.reference.fetch(self.processes)  # comes while this process decodes
        scores = self._begin_scoring(played, samples, len(samples) * self.processes.num_processes)
        found = scores() if self.scorer.local else None
        trajectories = self._replayed(played)  # another process may score meanwhile
        images, scored = scores() if found is None else found
        self.groups.drawn(samples, [one.completion for one in played], images, scored)
        table = gathered(scored, self.processes)
        first = self.processes.process_index * len(samples)
        advantages = self._advantages(table, samples, scored)[first : first + len(samples)]
        self.groups.trained(samples, advantages)
        return TrainBatch(trajectories, advantages)

    def _collect_informative(self, sampling: DynamicSampling, share: int) -> TrainBatch:
        """The same with dynamic sampling: groups whose scores do not differ are replaced before anything is
        replayed."""

        def play_round(samples: list[Sample], count: int) -> tuple[list[Trajectory], RewardTable]:
            played = self._played(samples)
            images, scored = self._begin_scoring(played, samples, count)()
            self.groups.drawn(samples, [one.completion for one in played], images, scored)
            return played, scored

        groups = share * self.processes.num_processes // self.recipe.rollout.samples_per_prompt
        filled = sampling.fill(groups, self.trainer.state.global_step, play_round, self._deviations)
        self.trainer.record(filled.metrics)
        # Metrics of rewards are those of the first round: what is chosen has more variance, and another mean.
        self._advantages(filled.first.table, filled.first.samples, filled.first.scored)
        trajectories = self._replayed(filled.trajectories)
        advantages = self._advantages(filled.table)[filled.rows]
        self.groups.trained([trajectory.sample for trajectory in trajectories], advantages)
        return TrainBatch(trajectories, advantages)

    def _begin_scoring(self, played: list[Trajectory], samples: list[Sample], count: int) -> Scores:
        """Of what was played. samples: this process's share of `count`, in groups that stand together over the
        processes."""
        return begin_in_groups(
            self.scorer,
            self.processes,
            [trajectory.completion for trajectory in played],
            samples,
            group=self.recipe.rollout.samples_per_prompt,
            count=count,
            policy=self.trainer.policy,
            step=self.trainer.state.global_step,
            keep=self.groups.pictured(len(samples)),
            phase=self.trainer.phase,
        )

    def _played(self, samples: list[Sample]) -> list[Trajectory]:
        """Turns of the policy as it is."""
        step = self.trainer.state.global_step
        with self.trainer.phase("rollout"), self.trainer.policy() as policy:
            played = play(policy, self.processor, samples, self.settings, step=step)
        self.trainer.count_made(turn for trajectory in played for turn in trajectory.turns)
        return played

    def _replayed(self, played: list[Trajectory]) -> list[Trajectory]:
        """With what, teacher-forced, the old policy finds of each turn, where that is needed, and the reference, or the
        expert of its prompt."""
        turns = [turn for trajectory in played for turn in self.experts.named_in(trajectory)]
        with self.trainer.phase("replay"):
            if self.trainer.serves_several_updates and self.recipe.algorithm.old_logp == "replay":
                turns = self._replay(self.trainer.model, turns, "old", self.guidance)
            for expert, places in self.experts.asked(turns, self.processes):
                with expert.reference.ready(self.trainer.model, self.processes) as model:
                    said = self._replay(model, [turns[place] for place in places], "reference", expert.guidance)
                for place, turn in zip(places, said, strict=True):
                    turns[place] = turn
        rest = iter(turns)
        return [replace(one, turns=tuple(next(rest) for _ in one.turns)) for one in played]

    def _replay(self, model: Any, turns: list[Turn], name: str, guidance: GuidanceSettings) -> list[Turn]:
        """Without gradient, in passes as large as those of the update. name: what the result is to each turn."""
        found, exact = list(turns), name == "reference" and self.turn_loss.tokens.kl == "exact"
        with torch.no_grad(), self.processes.autocast():
            for forward in self.forwards.of([turns])[0]:
                rows = forward.rows()
                if isinstance(rows, Texts):
                    said = rows.replay(model, self.turn_loss.temperature, positions=forward.positions)
                    rows = replace(
                        rows, **{name: said.log_probs}, **({"reference_hidden": said.hidden} if exact else {})
                    )
                else:
                    rows = replace(rows, **{name: rows.replay(model, guidance)})  # type: ignore[arg-type]
                for number, place in enumerate(forward.places):
                    found[place] = rows.row(number)
        return found

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
            self.watch.scores(bool(table.failed.any() or table.values.isfinite().any()), table.names)
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

    def share_out(self, batches: list[TrainBatch]) -> list[list[Forward]]:
        """The forward passes of a rollout's micro-batches, whose turns are weighted so that an update averages over
        its own. All processes call it, once per rollout."""
        aggregation = loss_named(self.recipe.algorithm.loss).aggregation
        accumulated = min(self.trainer.args.gradient_accumulation_steps, len(batches))
        return self.forwards.of_updates(batches, {"text": aggregation, "picture": aggregation}, accumulated)

    def loss(self, model: Any, forwards: list[Forward]) -> Tensor:
        """The loss of a micro-batch, with gradient."""
        beta = None if self.kl_control is None else self.kl_control.beta
        # Text before bits: DDP takes the parameters in use to be those of the last forward, and drawing uses most.
        divergence = None if self.text is None else self.text.divergence(model)
        loss = torch.zeros((), device=self.processes.device)
        for forward in forwards:
            part, metrics = self.turn_loss(model, forward, beta, self.trainer.is_first_pass)
            loss = loss + part * (forward.weight * self.recipe.algorithm.loss_scale)
            self.metrics.add(metrics, count=forward.count)
        if self.text is not None and divergence is not None:
            loss = loss + self.text.kl.beta * divergence
        found = {"loss": loss}
        if self.text is not None:
            found["understanding/kl"] = loss.new_zeros(()) if divergence is None else divergence
        self.metrics.add(found)
        self.watch.micro_batch(loss.detach(), forwards)
        if self.processes.sync_gradients:
            loss = self._end_of_update(loss)
        return loss / self.trainer.current_gradient_accumulation_steps

    def _end_of_update(self, loss: Tensor) -> Tensor:
        """Before the last backward pass of an update: its metrics are logged, and looked at. Returns the loss to go on
        with."""
        found, mismatch = self.metrics.reduce(self.processes), None
        metrics = {name: value for name, value in found.items() if name not in PARTS and name not in TEXT_PARTS}
        metrics |= compared(found)
        if self.trainer.is_first_rollout:
            precision = torch.bfloat16 if self.trainer.args.bf16 else self.trainer.bare_policy.dtype
            mismatch = mismatch_of(metrics, self.recipe, precision)
        # What limits and targets are for is of bits where the recipe draws, whatever this update has.
        of = "" if "picture" in self.forwards.kinds else TEXT
        loss = self.watch.update(loss, metrics, mismatch, of)
        if self.kl_control is not None:
            if (kl := metrics.get(f"{of}kl")) is not None:
                self.kl_control.measure(kl)
            metrics["beta"] = self.kl_control.beta
        del metrics["loss"]
        self.trainer.record(metrics, self.metrics.kinds)
        return loss
