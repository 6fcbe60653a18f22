"""Dynamic sampling (DAPO, arXiv 2503.14476, section 3.2): groups whose rewards do not differ teach nothing, and further
prompts are drawn in their place.

A round draws as many groups as are missing. All ranks take part in it, with the same number of samples each, so groups
may straddle ranks; whether a group is kept follows from the rewards of all ranks. At the end samples are moved between
ranks, so that each trains on its usual number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewards import RewardTable
from rl.config.sections import DynamicSamplingSection
from rl.distributed.sharing import gathered
from rl.policy.prompt_stream import PromptStream
from rl.policy.samples import Sample
from rl.policy.trajectory import Trajectory, on_device

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Filled:
    """What a rank trains on, B samples, and what all ranks have drawn for it."""

    trajectories: list[Trajectory]
    table: RewardTable
    """of all ranks' samples, W·B rows in whole groups"""
    rows: list[int]
    """which of those are this rank's"""
    first: "Round"
    """before any choice was made"""
    metrics: dict[str, float]


@dataclass(frozen=True)
class Round:
    """Groups drawn together. Sample number s of the round, counted over its groups, is on rank s // len(samples)."""

    groups: list[list[Sample]]
    samples: list[Sample]
    """this rank's"""
    played: list[Trajectory]
    """the same, played"""
    scored: RewardTable
    """this rank's samples"""
    table: RewardTable
    """all ranks' samples, in whole groups"""


class DynamicSampling:
    """Fills batches with groups that teach something."""

    def __init__(self, section: DynamicSamplingSection, stream: PromptStream, accelerator: "Accelerator") -> None:
        self.section, self.stream, self.accelerator = section, stream, accelerator

    def fill(
        self,
        groups: int,
        step: int,
        draw: Callable[[list[Sample], int], tuple[list[Trajectory], RewardTable]],
        deviations: Callable[[RewardTable], Tensor],
    ) -> Filled:
        """A batch of `groups` whole groups over all ranks.

        Args:
            draw: draws and scores this rank's samples of a round, told how many that is of all ranks.
            deviations: how far the rewards of each group differ, of a table of whole groups → (groups,).

        Groups that are still missing after the last round are those without variance that were drawn first.
        """
        size = self.stream.group_size
        rounds: list[Round] = []
        kept: list[tuple[Round, int]] = []
        without: list[tuple[Round, int]] = []
        while len(kept) < groups and len(rounds) < 1 + self.section.max_rounds:
            drawn = self._round(groups - len(kept), step, draw)
            rounds.append(drawn)
            for place, deviation in enumerate(deviations(drawn.table).tolist()):
                (kept if deviation > self.section.min_std else without).append((drawn, place))
        unfilled = groups - len(kept)
        chosen = kept + without[:unfilled]
        holders = [(place * size + i) // len(drawn.samples) for drawn, place in chosen for i in range(size)]
        moves = plan_moves(holders, self.accelerator.num_processes)
        trajectories, rows = self._moved(chosen, holders, moves)
        table = RewardTable.cat([drawn.table.rows(range(place * size, (place + 1) * size)) for drawn, place in chosen])
        metrics: dict[str, float] = {
            "dynamic_sampling/rounds": len(rounds),
            "dynamic_sampling/dropped": len(without) - unfilled,
            "dynamic_sampling/refilled": len(kept) - sum(drawn is rounds[0] for drawn, _ in kept),
            "dynamic_sampling/unfilled": unfilled,
        }
        return Filled(trajectories, table, rows, rounds[0], metrics)

    def _round(
        self, groups: int, step: int, draw: Callable[[list[Sample], int], tuple[list[Trajectory], RewardTable]]
    ) -> Round:
        taken = self.stream.take(groups, step)
        samples = [sample for group in taken for sample in group]
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        share = -(-len(samples) // ranks)
        # Every rank draws equally many: past the end the round's first samples come again, and are left out below.
        mine = [samples[number % len(samples)] for number in range(rank * share, (rank + 1) * share)]
        played, scored = draw(mine, len(samples))
        return Round(taken, mine, played, scored, gathered(scored, self.accelerator).rows(range(len(samples))))

    def _moved(
        self, chosen: Sequence[tuple[Round, int]], holders: Sequence[int], moves: dict[int, int]
    ) -> tuple[list[Trajectory], list[int]]:
        """This rank's samples of the chosen groups: those that it drew, without those it gives away, and those it gets.

        The order in which ranks send and receive is the same on all, so they never wait for each other in a circle.
        """
        rank, size, device = self.accelerator.process_index, self.stream.group_size, self.accelerator.device
        trajectories, rows = [], []
        for row, holder in enumerate(holders):
            (drawn, place), owner = chosen[row // size], moves.get(row, holder)
            if rank not in (holder, owner):
                continue
            if rank == holder:
                trajectory = drawn.played[place * size + row % size - holder * len(drawn.samples)]
                if owner != holder:
                    torch.distributed.send_object_list([on_device(trajectory, "cpu")], owner, device=device)
                    continue
            else:
                received: list[Any] = [None]
                torch.distributed.recv_object_list(received, holder, device=device)
                trajectory = on_device(received[0], device)
            trajectories.append(trajectory)
            rows.append(row)
        return trajectories, rows


def plan_moves(holders: Sequence[int], ranks: int) -> dict[int, int]:
    """Which samples change ranks so that all ranks have equally many: number of the sample → its new rank.

    holders: the rank that each sample is on. As few are moved as possible: the last ones of ranks with too many.
    """
    share = len(holders) // ranks
    counts = [0] * ranks
    surplus = []
    for number, holder in enumerate(holders):
        counts[holder] += 1
        if counts[holder] > share:
            surplus.append(number)
    takers = [rank for rank in range(ranks) for _ in range(share - counts[rank])]
    return dict(zip(surplus, takers, strict=True))
