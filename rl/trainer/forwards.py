"""Which turns are replayed together: as many forward passes on every process, in the same order, whatever each has.

DDP and ZeRO wait for each other in every pass. A process without turns of a kind where another has some replays a
stand-in, which counts nothing. Where a recipe both writes and draws, each micro-batch has a pass of either, so that
every trained weight takes part in every backward pass.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from rl.algorithm.losses.averaging import Extent, share
from rl.algorithm.losses.loss import Aggregation
from rl.episodes.requests import TurnKind
from rl.policy.turns import Kind, Pictures, Texts, Turn, joined
from rl.trainer.train_batch import TrainBatch

if TYPE_CHECKING:
    from accelerate import Accelerator

_NOTHING = {"text": Kind("text", 0), "picture": Kind("picture", 1)}
"""what is replayed of a kind where no process has any: a stand-in"""


@dataclass(frozen=True)
class Forward:
    """Turns of one kind that are replayed together."""

    turns: tuple[Turn, ...]
    """R, a row each"""
    places: tuple[int, ...]
    """of these among the turns that were given; none for a stand-in"""
    advantages: Tensor | None = None
    """(R,) float32; None where there are none yet"""
    weight: float = 0.0
    """what the mean over the turns is multiplied by, so that the mean of that over processes and micro-batches is the
    mean over the turns of an update; 0 for a stand-in"""

    positions: int = 0
    """of texts: the most rows × tokens that a process has in this pass"""
    count: int = 0
    """what metrics of it weigh beside those of other passes: pictures, or tokens of text; 0 for a stand-in"""

    @property
    def name(self) -> TurnKind:
        return self.turns[0].kind.name

    @property
    def is_text(self) -> bool:
        return self.name == "text"

    def rows(self) -> Turn:
        return joined(self.turns)

    @property
    def extent(self) -> Extent:
        if not self.places:
            return Extent(0, 0, 0)
        counts = [turn.elements for turn in self.turns]
        return Extent(len(self.turns), sum(counts), max(turn.width for turn in self.turns))


class Forwards:
    """Makes them. All processes call each method, with equally many batches."""

    def __init__(
        self,
        processes: "Accelerator",
        config: Any,
        *,
        size: int,
        kinds: Collection[TurnKind],
        guided: bool,
        hidden: Mapping[str, int] | None = None,
    ) -> None:
        """config: the model's. size: most turns of a pass. kinds: what the recipe's episodes may take. guided: whether
        pictures keep an unconditional branch. hidden: where texts are compared with a policy over the whole vocabulary,
        the size of its states, by the name of the expert; "" for the reference."""
        self.processes, self.config, self.size, self.kinds, self.guided = processes, config, size, sorted(kinds), guided
        self.hidden = hidden or {}

    def of(self, batches: Sequence[Sequence[Turn]]) -> list[list[Forward]]:
        """The passes of each batch: texts, then pictures."""
        own = [_chunks(turns, self.size) for turns in batches]
        sizes = [
            {kind: [_positions(turns, chunk) for chunk in chunks] for kind, chunks in batch.items()}
            for turns, batch in zip(batches, own, strict=True)
        ]
        every = gather_object([sizes]) if self.processes.num_processes > 1 else [sizes]
        made = []
        for number, turns in enumerate(batches):
            needed: dict[Kind, list[int]] = {}
            for process in every:
                for kind, given in process[number].items():
                    needed[kind] = [max(pair) for pair in zip_longest(needed.get(kind, []), given, fillvalue=0)]
            for name in self.kinds:
                if not any(kind.name == name for kind in needed):
                    needed[_NOTHING[name]] = [1]
            passes = []
            for kind in sorted(needed, key=lambda kind: (kind.name != "text", kind.tokens, kind.expert)):
                chunks = own[number].get(kind, [])
                chunks += [[]] * (len(needed[kind]) - len(chunks))
                for chunk, most in zip(chunks, needed[kind], strict=True):
                    rows = tuple(turns[place] for place in chunk) or (self._stand_in(kind),)
                    passes.append(Forward(rows, tuple(chunk), positions=most))
            made.append(passes)
        return made

    def of_updates(
        self, batches: Sequence[TrainBatch], aggregations: dict[TurnKind, Aggregation], accumulated: int
    ) -> list[list[Forward]]:
        """The same of a rollout's micro-batches, with advantages and weights. accumulated: micro-batches of an update,
        or all of the rollout where an update takes more."""
        flat = [_with_advantages(batch) for batch in batches]
        made = self.of([[turn for turn, _ in pairs] for pairs in flat])
        extents = [[forward.extent for forward in passes] for passes in made]
        every = gather_object([extents]) if self.processes.num_processes > 1 else [extents]
        weighted = []
        for number, passes in enumerate(made):
            first = number // accumulated * accumulated
            update = range(first, min(first + accumulated, len(made)))
            found = []
            for place, forward in enumerate(passes):
                if not forward.places:
                    nothing = torch.zeros(1, device=batches[number].advantages.device)
                    found.append(replace(forward, advantages=nothing))
                    continue
                # Passes are as many, and of the same kinds, on every process.
                all_extents = [
                    process[one][other]
                    for process in every
                    for one in update
                    for other, its in enumerate(made[one])
                    if its.name == forward.name
                ]
                how = aggregations[forward.name]
                weight = share(extents[number][place], all_extents, how) * len(every) * len(update)
                weight = (
                    round(weight) if math.isclose(weight, round(weight), rel_tol=1e-12) else weight
                )  # 49 · 1/49 is 1
                advantages = torch.stack([flat[number][turn][1] for turn in forward.places])
                extent = extents[number][place]
                count = extent.elements if forward.is_text else extent.rows
                found.append(replace(forward, advantages=advantages, weight=float(weight), count=count))
            weighted.append(found)
        return weighted

    def _stand_in(self, kind: Kind) -> Turn:
        device = self.processes.device
        if kind.name == "text":
            return Texts.stand_in(device, self.hidden.get(kind.expert), kind.expert)
        return Pictures.stand_in(self.config, device, self.guided, kind.expert)


def _chunks(turns: Sequence[Turn], size: int) -> dict[Kind, list[list[int]]]:
    """The places of the turns of each kind, `size` at a time."""
    places: dict[Kind, list[int]] = {}
    for place, turn in enumerate(turns):
        places.setdefault(turn.kind, []).append(place)
    return {kind: [of[start : start + size] for start in range(0, len(of), size)] for kind, of in places.items()}


def _positions(turns: Sequence[Turn], chunk: Sequence[int]) -> int:
    """Rows times the longest of them."""
    return len(chunk) * max(turns[place].width for place in chunk)


def _with_advantages(batch: TrainBatch) -> list[tuple[Turn, Tensor]]:
    """Each turn of each sample with the sample's advantage."""
    pairs: Iterable[tuple[Any, Tensor]] = zip(batch.trajectories, batch.advantages, strict=True)
    return [(turn, advantage) for trajectory, advantage in pairs for turn in trajectory.turns]
