"""The scores of a batch under all rewards of a recipe."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from rewards.contract.protocol import Details


@dataclass(frozen=True)
class RewardTable:
    """Scores of B samples under R rewards.

    Attributes:
        names: the R rewards, in the recipe's order.
        values: (B, R) float64 on the CPU, as the rewards gave them; NaN where a reward does not apply or, under
            `on_error: skip`, failed. What they count for is `RewardSuite.terms` of them, times the weights.
        weights: (B, R) float64 on the CPU, each sample's by its task; 0 where the recipe has none for that task.
        failed: (B, R) bool, which of those NaNs are failures.
        seconds: for each reward, the wall time it took.
        details: what rewards say about each of the B samples besides its score, None where they say nothing; only of
            rewards that say something.
    """

    names: tuple[str, ...]
    values: torch.Tensor
    weights: torch.Tensor
    failed: torch.Tensor
    seconds: dict[str, float]
    details: dict[str, list[Details | None]] = field(default_factory=dict)

    @property
    def failures(self) -> dict[str, int]:
        """For each reward, on how many samples it failed."""
        return dict(zip(self.names, self.failed.sum(0).tolist(), strict=True))

    def column(self, name: str) -> torch.Tensor:
        """(B,) scores of one reward."""
        return self.values[:, self.names.index(name)]

    @classmethod
    def empty(cls, names: Sequence[str], weights: torch.Tensor) -> "RewardTable":
        """Without any score yet. weights: (B, R)."""
        values, failed = torch.full_like(weights, torch.nan), torch.zeros_like(weights, dtype=torch.bool)
        return cls(tuple(names), values, weights, failed, dict.fromkeys(names, 0.0))

    def rows(self, places: Sequence[int]) -> "RewardTable":
        """The scores of some samples, by place; the seconds are those of all."""
        places = list(places)
        details = {name: [said[place] for place in places] for name, said in self.details.items()}
        return RewardTable(
            self.names, self.values[places], self.weights[places], self.failed[places], self.seconds, details
        )

    def filled(
        self, other: "RewardTable", names: Sequence[str] | None = None, places: Sequence[int] | None = None
    ) -> "RewardTable":
        """This table with what `other` has of the rewards `names` (None: of all) for the samples that stand here at
        `places` (None: everywhere); seconds add up."""
        names = self.names if names is None else names
        places = list(range(len(self.values)) if places is None else places)
        columns = [self.names.index(name) for name in names]
        values, failed = self.values.clone(), self.failed.clone()
        for column in columns:
            values[places, column], failed[places, column] = other.values[:, column], other.failed[:, column]
        details = {name: list(said) for name, said in self.details.items()}
        for name in (name for name in names if name in other.details):
            said = details.setdefault(name, [None] * len(values))
            for place, row in zip(places, other.details[name], strict=True):
                said[place] = row
        seconds = {name: self.seconds[name] + other.seconds[name] * (name in names) for name in self.names}
        return RewardTable(self.names, values, self.weights, failed, seconds, details)

    @staticmethod
    def cat(tables: Sequence["RewardTable"]) -> "RewardTable":
        """The tables of consecutive batches as one; counts and seconds add up."""
        names = tables[0].names
        if any(table.names != names for table in tables):
            raise ValueError(f"tables of different rewards cannot be joined: {[table.names for table in tables]}.")
        return RewardTable(
            names=names,
            values=torch.cat([table.values for table in tables]),
            weights=torch.cat([table.weights for table in tables]),
            failed=torch.cat([table.failed for table in tables]),
            seconds={name: sum(table.seconds[name] for table in tables) for name in names},
            details={
                name: [row for table in tables for row in table.details.get(name, [None] * len(table.values))]
                for name in names
                if any(name in table.details for table in tables)
            },
        )
