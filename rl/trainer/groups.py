"""What training teaches, kept to be looked at: now and then some whole groups of a rollout, with their advantages."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor

from rewards import RewardTable
from rl.config.sections import Recipe
from rl.distributed.sharing import shares_at_main
from rl.evaluation.evaluate import total_scores
from rl.policy.completion import Completion
from rl.policy.samples import DrawSettings, Sample
from rl.records.rows import picture_of, sample_rows, sources_of
from rl.scoring.scorer import Scorer

if TYPE_CHECKING:
    from rl.trainer.resumable import ResumableGRPOTrainer

Key = tuple[str, int]
GroupsSeen = Callable[[int, pa.Table], None]


class GroupRecorder:
    """Sees the samples of a rollout as they are scored, and then which of them are trained on. The processes share what
    they have of the groups that are kept."""

    def __init__(
        self, trainer: "ResumableGRPOTrainer", recipe: Recipe, scorer: Scorer, groups_seen: GroupsSeen
    ) -> None:
        """groups_seen: called in the main process with the number of the update, and the rows of its groups."""
        self.trainer, self.section, self.groups_seen = trainer, recipe.records, groups_seen
        self.rewards, self.settings = scorer.rewards, DrawSettings.for_training(recipe)
        self.group, self.chosen_later = recipe.rollout.samples_per_prompt, recipe.rollout.dynamic_sampling is not None
        self._drawn: list[tuple[Sequence[Sample], Sequence[Completion], Sequence[Image.Image | None], RewardTable]] = []

    @property
    def wanted(self) -> bool:
        """Whether groups of the rollout under way are kept."""
        every, step = self.section.groups_every, self.trainer.state.global_step
        return every is not None and step % every < self.trainer.updates_of_rollout

    def pictured(self, share: int) -> range:
        """The places, of the `share` samples of this process, whose images are kept: of the first groups, which are
        trained on; with dynamic sampling, which chooses when all are scored, all of them."""
        if not self.wanted or self.section.picture_size == 0:
            return range(0)
        if self.chosen_later:
            return range(share)
        first = self.trainer.accelerator.process_index * share
        return range(min(share, max(0, self.section.groups * self.group - first)))

    def drawn(
        self,
        samples: Sequence[Sample],
        made: Sequence[Completion],
        images: Sequence[Image.Image | None],
        scored: RewardTable,
    ) -> None:
        """Called with the samples of this process, what they made, and their scores."""
        if self.wanted:
            self._drawn.append((samples, made, images, scored))

    def trained(self, samples: Sequence[Sample], advantages: Tensor) -> None:
        """Called with what this process trains on. All processes call it."""
        if not self.wanted:
            return
        keys = [(sample.record.id, sample.index) for sample in samples]
        taught = dict(
            pair for share in gather_object([list(zip(keys, advantages.tolist(), strict=True))]) for pair in share
        )
        prompts = list(dict.fromkeys(identity for identity, _ in taught))[: self.section.groups]
        wanted = {key: taught[key] for key in taught if key[0] in prompts}
        shares = shares_at_main(self._rows(wanted), self.trainer.accelerator)
        found = {key: row for share in shares for key, row in share.items()}
        self._drawn = []
        if found:
            rows = pa.concat_tables(
                found[key] for key in sorted(found, key=lambda key: (prompts.index(key[0]), key[1]))
            )
            self.groups_seen(self.trainer.state.global_step + 1, rows)

    def _rows(self, wanted: dict[Key, float]) -> dict[Key, Any]:
        """Those of the wanted samples that this process has drawn."""
        rows: dict[Key, Any] = {}
        for samples, made, images, scored in self._drawn:
            keys = [(sample.record.id, sample.index) for sample in samples]
            places = {key: keys.index(key) for key in keys if key in wanted}
            if not places:
                continue
            totals = total_scores(self.rewards.terms(scored.values), scored.weights, scored.failed)
            own = list(places.values())
            kept = [samples[place] for place in own]
            table = sample_rows(
                kept,
                self.settings,
                scored.rows(own),
                totals[own].tolist(),
                [picture_of(images[place], self.section.picture_size) for place in own],
                [made[place] for place in own],
                sources=sources_of(kept, self.section.picture_size),
                step=self.trainer.state.global_step,
                advantages=[wanted[key] for key in places],
            )
            rows |= {key: table.slice(row, 1) for row, key in enumerate(places)}
        return rows
