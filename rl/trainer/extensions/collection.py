"""What a recipe asks of training besides its algorithm, each with a state of its own in checkpoints."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from rl.checkpoint.stateful_callback import StatefulCallback
from rl.config.sections import Recipe
from rl.data.prompts import PromptRecord
from rl.policy.prompt_stream import PromptStream
from rl.policy.reference import AdapterCopy, FrozenCopy, Reference
from rl.trainer.extensions.early_stop import EarlyStop
from rl.trainer.extensions.ema import WeightAverage
from rl.trainer.extensions.guards import Guards
from rl.trainer.extensions.kl_control import KLControl
from rl.trainer.extensions.reference_refresh import ReferenceRefresh


@dataclass(frozen=True)
class TrainerExtensions:
    """None for what the recipe does without."""

    prompts: PromptStream | None = None
    average: WeightAverage | None = None
    kl_control: KLControl | None = None
    reference_refresh: ReferenceRefresh | None = None
    early_stop: EarlyStop | None = None
    guards: Guards | None = None

    @classmethod
    def of(
        cls, recipe: Recipe, reference: Reference | None, records: Sequence[PromptRecord], measured: str
    ) -> "TrainerExtensions":
        """measured: tells evaluations apart that cannot be compared (rl/run/data_state.py)."""
        model, algorithm, held_out = recipe.model, recipe.algorithm, recipe.evaluate
        refresh = algorithm.reference_refresh
        prompts = None
        if recipe.rollout.dynamic_sampling is not None:
            prompts = PromptStream(
                records, recipe.rollout.samples_per_prompt, shuffle=recipe.data.shuffle, seed=recipe.data_seed
            )
        refreshed = None
        if refresh is not None:
            assert isinstance(reference, AdapterCopy | FrozenCopy)  # as `reference_for` makes it then
            refreshed = ReferenceRefresh(refresh, reference)
        return cls(
            prompts=prompts,
            average=None if model.ema is None else WeightAverage(model.ema),
            kl_control=None if algorithm.kl_control is None else KLControl(algorithm.kl_control, algorithm.beta),
            reference_refresh=refreshed,
            early_stop=None if held_out.early_stop is None else EarlyStop(held_out.early_stop),
            guards=None if recipe.watch.guards is None else Guards(recipe.watch.guards, recipe, measured),
        )

    @property
    def stateful_callbacks(self) -> list[StatefulCallback]:
        """Those that are there, in the order in which an update's end reaches them."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return [value for value in values if value is not None]
