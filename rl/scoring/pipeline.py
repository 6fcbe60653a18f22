"""Scoring beside decoding: while a chunk of images is scored in a thread, the next chunk is decoded.

The table is the one that scoring after decoding gives. Rewards that look at the policy or say `overlaps_decoding =
False` get the whole batch on the calling thread, after the last chunk, and those that compare samples a group at a
time. All others get chunks of whole decoder batches, so that the images are the same too, one after the other, in
order.
"""

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from rewards import RewardBatch, RewardSuite, RewardTable
from rl.policy.rollout import DrawSettings, Sample, decode
from rl.scoring.groups import comparing, groups_of, joined

if TYPE_CHECKING:
    from uniar.modeling_decoder import UniARVisualDecoder

SMALLEST_CHUNK = 8
"""images: a request to a reward server, or a batch for a reward model on the GPU, is not worth it for fewer"""


def decode_and_score(
    decoder: "UniARVisualDecoder",
    bits: Tensor,
    samples: Sequence[Sample],
    settings: DrawSettings,
    rewards: RewardSuite,
    policy: AbstractContextManager[torch.nn.Module],
    processor: Any,
    *,
    step: int = 0,
    apart: Collection[int] = (),
    phase: Callable[[str], AbstractContextManager] = nullcontext,
) -> tuple[list[Image.Image], RewardTable]:
    """Bits (B, T, L, S, K) → B images and their scores.

    Args:
        policy, processor: for rewards that look at the model, see `RewardSuite.bound`.
        apart: samples, by place, whose group is not whole here; rewards that compare samples have no score for them.
        phase: a context for the time that is spent in "decode", and then, with nothing left to decode, in "reward".

    Raises what decoding raises, and RewardError for a reward that fails under `on_error: stop`, without decoding on.
    """
    rewards.load()
    beside = [r.name for r in rewards.rewards if r.pointwise and r.overlaps_decoding and not r.wants_policy]
    compared = comparing(rewards)
    after = [name for name in rewards.names if name not in beside and name not in compared]
    images: list[Image.Image] = []
    size = chunk_size(settings.decode_batch_size)
    with rewards.on_device(), BackgroundScorer(rewards, beside) as scoring:
        with phase("decode"):
            for start in range(0, len(samples), size):
                rows = slice(start, start + size)
                drawn = decode(decoder, bits[rows], samples[rows], settings, step=step)
                images += drawn
                scoring.add(reward_batch(samples[rows], drawn, bits[rows]))
        with phase("reward"):
            table = scoring.table()
            with rewards.bound(policy, processor):
                batch = reward_batch(samples, images, bits)
                rest = rewards.score(batch, only=after)
                groups, parts = groups_of(samples, apart) if compared else [], []
                for places in groups:  # here, not in a function of its own: who writes a reward reads its tracebacks
                    parts.append(rewards.score(batch.select(places), only=compared, first=places[0]))
    table = rest if table is None else table.filled(rest, after)
    return images, table.filled(joined(rewards, batch, groups, parts), compared)


def chunk_size(decode_batch_size: int) -> int:
    """Images that are decoded before they are scored: whole decoder batches, because an image depends in its last
    digits on the batch it was decoded in."""
    return decode_batch_size * -(-SMALLEST_CHUNK // decode_batch_size)


def reward_batch(samples: Sequence[Sample], images: Sequence[Image.Image], bits: Tensor) -> RewardBatch:
    """What rewards see of decoded samples."""
    return RewardBatch(
        prompts=[sample.record.prompt for sample in samples],
        images=list(images),
        tasks=[sample.record.task for sample in samples],
        metadata=[sample.record.metadata for sample in samples],
        bits=bits.cpu(),
    )


def compare_samples(
    rewards: RewardSuite, bits: Sequence[Tensor], samples: Sequence[Sample], images: Sequence[Image.Image]
) -> RewardTable | None:
    """The scores of the rewards that compare samples, which are in whole groups; None for no samples."""
    if not samples:
        return None
    batch = reward_batch(samples, images, torch.stack(list(bits)))
    groups, names = groups_of(samples), comparing(rewards)
    parts = [rewards.score(batch.select(places), only=names, first=places[0]) for places in groups]
    return joined(rewards, batch, groups, parts)


class BackgroundScorer:
    """A thread that scores batches with some rewards of a suite, in the order they are added.

    As a context it does not end before its thread is idle; batches whose turn has not come when the block is left by an
    exception are given up.
    """

    def __init__(self, rewards: RewardSuite, names: Sequence[str]):
        self._rewards, self._names = rewards, tuple(names)
        self._pending: list[Future[RewardTable]] = []
        self._count = 0
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        # A new thread would start on the first GPU, whichever this process trains on.
        start = None if device is None else torch.cuda.set_device
        self._thread = ThreadPoolExecutor(1, "scoring", initializer=start, initargs=() if device is None else (device,))

    def __enter__(self) -> "BackgroundScorer":
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def add(self, batch: RewardBatch) -> None:
        """Has a batch scored. Raises what scoring an earlier one has raised by now."""
        for future in self._pending:
            if future.done():
                future.result()
        first, self._count = self._count, self._count + len(batch)
        if self._names:
            self._pending.append(self._thread.submit(self._rewards.score, batch, only=self._names, first=first))

    def table(self) -> RewardTable | None:
        """All batches' scores, in the order they were added; None where there are no batches or no rewards. Waits for
        them, and raises what scoring raised."""
        tables = [future.result() for future in self._pending]
        return RewardTable.cat(tables) if tables else None
