"""Scoring beside decoding: while a chunk of images is scored in a thread, the next chunk is decoded.

The table is the one that scoring after decoding gives. Rewards that look at the policy or say `overlaps_decoding =
False` get the whole batch on the calling thread, after the last chunk, and those that compare samples a group at a
time. All others get chunks of whole decoder batches, so that the images are the same too, one after the other, in
order.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from rewards import RewardSuite, RewardTable
from rl.policy.rollout import decode
from rl.policy.samples import DrawSettings, Sample
from rl.scoring.background_scorer import BackgroundScorer
from rl.scoring.groups import comparing, groups_of, joined, reward_batch

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
