"""Prompts for groups as they are asked for, however many an update takes."""

from collections.abc import Sequence
from typing import Any

import torch

from rl.checkpoint.layout import PROMPT_STREAM
from rl.checkpoint.stateful_callback import StatefulCallback
from rl.data.prompts import PromptRecord
from rl.policy.samples import Sample
from uniar.seeds import seed_of


class PromptStream(StatefulCallback):
    """The prompts in the order that training has them, one epoch after the other, with the position in a checkpoint.

    An epoch's order is that of rl/trainer/resumable.py's sampler, which passes over the last prompts of an epoch where
    they do
    not fill a rollout: where they do, and nothing is taken besides, the prompts are the same.
    """

    name = PROMPT_STREAM

    def __init__(self, records: Sequence[PromptRecord], group_size: int, *, shuffle: bool, seed: int) -> None:
        self.records, self.group_size = records, group_size
        self.shuffle, self.seed = shuffle, seed
        self.position = 0
        self._order: tuple[int, list[int]] = (-1, [])
        self._step: int | None = None
        self._groups: dict[int, int] = {}

    def take(self, groups: int, step: int) -> list[list[Sample]]:
        """The samples of the next groups. A prompt that comes again in the same step gets other samples of its own."""
        if step != self._step:
            self._step, self._groups = step, {}
        taken = []
        for _ in range(groups):
            epoch, place = divmod(self.position, len(self.records))
            number = self._order_of(epoch)[place]
            first = self._groups.get(number, 0) * self.group_size
            self._groups[number] = self._groups.get(number, 0) + 1
            taken.append([Sample(self.records[number], first + i) for i in range(self.group_size)])
            self.position += 1
        return taken

    def state(self) -> dict[str, Any]:
        return {"position": self.position}

    def set_state(self, state: dict[str, Any]) -> None:
        self.position = int(state["position"])

    def _order_of(self, epoch: int) -> list[int]:
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(seed_of("prompt order", self.seed, epoch))
            count = len(self.records)
            order = torch.randperm(count, generator=generator).tolist() if self.shuffle else list(range(count))
            self._order = epoch, order
        return self._order[1]
