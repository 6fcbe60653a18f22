"""What an update is trained on, and the one place where it is the dictionary that TRL shuffles and splits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rl.policy.trajectory import Trajectory


@dataclass(frozen=True)
class TrainBatch:
    """B samples, as they were played."""

    trajectories: list[Trajectory]
    advantages: Tensor
    """(B,) float32"""

    def to_dict(self) -> dict[str, Any]:
        """Indexed by sample. The first entry is the tensor, whose length TRL takes for that of all."""
        return {"advantages": self.advantages, "trajectories": self.trajectories}

    @classmethod
    def from_dict(cls, batch: dict[str, Any]) -> "TrainBatch":
        """The inverse of `to_dict`; other entries are passed over."""
        return cls(batch["trajectories"], batch["advantages"])


def in_whole_groups(batches: Sequence[TrainBatch], of_update: int) -> list[TrainBatch]:
    """The micro-batches of a rollout with as many samples as before, but within each update, of `of_update`
    micro-batches, the samples of a prompt one behind the other: what they share is computed once then."""
    found = []
    for start in range(0, len(batches), of_update):
        update = batches[start : start + of_update]
        samples = [one for batch in update for one in batch.trajectories]
        first: dict[str, int] = {}
        groups = [first.setdefault(one.sample.record.id, place) for place, one in enumerate(samples)]
        order = sorted(range(len(samples)), key=groups.__getitem__)
        advantages = torch.cat([batch.advantages for batch in update])
        for batch in update:
            own, order = order[: len(batch.trajectories)], order[len(batch.trajectories) :]
            found.append(TrainBatch([samples[place] for place in own], advantages[own]))
    return found
