"""What a recipe asks of training besides its algorithm, each with a state of its own in checkpoints."""

import dataclasses
from dataclasses import dataclass

from rl.config import Recipe
from rl.early_stop import EarlyStop
from rl.ema import WeightAverage
from rl.keeper import Keeper
from rl.kl_control import KLControl


@dataclass(frozen=True)
class Features:
    """None for what the recipe does without."""

    average: WeightAverage | None = None
    kl_control: KLControl | None = None
    early_stop: EarlyStop | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> "Features":
        model, algorithm, held_out = recipe.model, recipe.algorithm, recipe.evaluate
        return cls(
            average=None if model.ema is None else WeightAverage(model.ema),
            kl_control=None if algorithm.kl_control is None else KLControl(algorithm.kl_control, algorithm.beta),
            early_stop=None if held_out.early_stop is None else EarlyStop(held_out.early_stop),
        )

    @property
    def keepers(self) -> list[Keeper]:
        """Those that are there, in the order in which an update's end reaches them."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return [value for value in values if value is not None]
