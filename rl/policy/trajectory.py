"""A sample as it was played: its turns, and what came of them."""

from dataclasses import dataclass, replace

import torch

from rl.policy.completion import Completion
from rl.policy.samples import Sample
from rl.policy.turns import Turn, turn_on_device


@dataclass(frozen=True)
class Trajectory:
    """One sample."""

    sample: Sample
    completion: Completion
    """what rewards see"""
    turns: tuple[Turn, ...]
    """in the order in which they were taken, a row each"""


def on_device(trajectory: Trajectory, device: torch.device | str) -> Trajectory:
    """The same with its tensors there."""
    turns = tuple(turn_on_device(turn, device) for turn in trajectory.turns)
    drawing = trajectory.completion.drawing
    moved = drawing if drawing is None else replace(drawing, bits=drawing.bits.to(device, copy=True))
    return replace(trajectory, turns=turns, completion=replace(trajectory.completion, drawing=moved))
