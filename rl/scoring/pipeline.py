"""Scoring beside decoding: while a chunk of images is scored in a thread, the next chunk is decoded.

The table is the one that scoring after decoding gives. Drawings of one size stand together, so that each batch is
decoded in one call and has its bits. Rewards that look at the policy or say `overlaps_decoding = False` get all samples
of a size on the calling thread, after the last chunk, and those that compare samples a group at a time. All others get
chunks of whole decoder batches, so that the images are the same too, one after the other, in order.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from rewards import RewardSuite, RewardTable
from rl.policy.completion import Completion, places_by_shape
from rl.policy.samples import DrawSettings, Sample
from rl.scoring.background_scorer import BackgroundScorer
from rl.scoring.decoding import decode
from rl.scoring.groups import comparing, comparisons, reward_batch

if TYPE_CHECKING:
    from uniar.modeling_decoder import UniARVisualDecoder

SMALLEST_CHUNK = 8
"""images: a request to a reward server, or a batch for a reward model on the GPU, is not worth it for fewer"""


def decode_and_score(
    decoder: "UniARVisualDecoder",
    completions: Sequence[Completion],
    samples: Sequence[Sample],
    settings: DrawSettings,
    rewards: RewardSuite,
    policy: AbstractContextManager[torch.nn.Module],
    processor: Any,
    *,
    step: int = 0,
    apart: Collection[int] = (),
    phase: Callable[[str], AbstractContextManager] = nullcontext,
) -> tuple[list[Image.Image | None], RewardTable]:
    """B completions → images, None where nothing was drawn, and scores.

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
    images: list[Image.Image | None] = [None] * len(samples)
    size, alike = chunk_size(settings.decode_batch_size), places_by_shape(completions)
    table = RewardTable.empty(rewards.names, rewards.weights_for([sample.record.task for sample in samples]))
    with rewards.on_device(), BackgroundScorer(rewards, beside) as scoring:
        with phase("decode"):
            for chunk in (places[start : start + size] for places in alike for start in range(0, len(places), size)):
                drawings = [drawing for place in chunk if (drawing := completions[place].drawing) is not None]
                if drawings:  # of all or none, as they are alike
                    own = decode(decoder, drawings, [samples[place] for place in chunk], settings, step=step)
                    for place, image in zip(chunk, own, strict=True):
                        images[place] = image
                scoring.add(reward_batch(samples, images, completions, chunk), chunk)
        with phase("reward"):
            for places, part in scoring.tables():
                table = table.filled(part, beside, places)
            with rewards.bound(policy, processor):
                for places in alike if after else []:
                    batch = reward_batch(samples, images, completions, places)
                    table = table.filled(rewards.score(batch, only=after, numbers=places), after, places)
                # Here, not in a function of its own: who writes a reward reads its tracebacks.
                for names, places, batch in comparisons(rewards, samples, images, completions, apart):
                    table = table.filled(rewards.score(batch, only=names, numbers=places), names, places)
    return images, table


def chunk_size(decode_batch_size: int) -> int:
    """Images that are decoded before they are scored: whole decoder batches, because an image depends in its last
    digits on the batch it was decoded in."""
    return decode_batch_size * -(-SMALLEST_CHUNK // decode_batch_size)
