"""`rank`: another reward's scores as ranks within the prompt's samples."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rewards.attempt import score_samples
from rewards.contract.base import Reward, RewardBatch
from rewards.contract.protocol import Details, read_scores, split_details
from uniar.errors import UserError


class Rank(Reward):
    """The rank of a sample among those of its prompt by another reward: 0 for the lowest score, 1 for the highest, in
    even steps; equal scores share the mean of their ranks. A sample that the other reward has no score for has none,
    nor has one that is alone with its prompt. Details: the other's score, under `measured`, and what it says.

    Args:
        reward: the other reward, an entry of its own with `use` and its parameters, such as {use: pickscore}. Weight,
            tasks, on_error and the like stand in the entry of rank itself.
    """

    nested = ("reward",)
    pointwise = False
    usual_range = (0.0, 1.0)

    def __init__(self, reward: Reward):
        self.reward = reward
        self.wants_policy, self.needs_image = reward.wants_policy, reward.needs_image

    @property
    def is_async(self) -> bool:
        return self.reward.is_async

    def check_sample(self, prompt: str, metadata: Mapping[str, Any]) -> None:
        self.reward.check_sample(prompt, metadata)

    def check_columns(self, metadata: Any) -> None:
        self.reward.check_columns(metadata)

    def load(self) -> None:
        self.reward.load()
        self.needs_image = self.reward.needs_image  # which a server says

    def to(self, device: str | torch.device) -> None:
        self.reward.to(device)

    def close(self) -> None:
        self.reward.close()

    def bind(self, policy: torch.nn.Module | None, processor: Any) -> None:
        self.reward.bind(policy, processor)

    def score(self, batch: RewardBatch) -> Any:
        """For each sample a mapping with `score`, None, or an exception; a coroutine where the other reward's is."""
        if self.is_async:
            return self._awaited(batch)
        # So that a sample on which the other reward raises does not cost the others theirs.
        found = score_samples(self.reward, batch, wait=None, retries=0, first_fault_only=False)
        return self._ranked(
            batch, found.scores, {row: fault.text for row, fault in found.faults.items()}, found.details
        )

    async def _awaited(self, batch: RewardBatch) -> list[Any]:
        scores, details = split_details(await self.reward.score(batch))
        return self._ranked(batch, *read_scores(scores, len(batch)), details)

    def _ranked(
        self, batch: RewardBatch, values: list[float], faults: Mapping[int, str], details: Sequence[Details | None]
    ) -> list[Any]:
        groups: dict[str, list[float]] = {}
        for prompt, value in zip(batch.prompts, values, strict=True):
            if not math.isnan(value):
                groups.setdefault(prompt, []).append(value)
        found: list[Any] = [None] * len(batch)
        for row, (prompt, value) in enumerate(zip(batch.prompts, values, strict=True)):
            if row in faults:
                found[row] = UserError(f"{self.reward.name} {faults[row]}")
            elif len(group := groups.get(prompt, [])) > 1 and not math.isnan(value):
                said = (details[row] if details else None) or {}
                found[row] = {"score": _rank(value, group), "measured": value, **said}
        return found


def _rank(value: float, group: list[float]) -> float:
    below, equal = sum(other < value for other in group), group.count(value)
    return (below + (equal - 1) / 2) / (len(group) - 1)
