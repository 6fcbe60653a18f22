"""What an update is trained on, and the one place where it is the dictionary that TRL shuffles and splits."""

from dataclasses import dataclass
from typing import Any

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
