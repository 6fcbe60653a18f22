"""Decoded samples as rewards see them, and groups that they compare (`pointwise = False`): each is scored whole and by
itself."""

from collections.abc import Collection, Sequence

import torch
from PIL import Image
from torch import Tensor

from rewards import RewardBatch, RewardSuite, RewardTable
from rl.policy.samples import Sample


def comparing(rewards: RewardSuite) -> list[str]:
    """The rewards that compare samples, as far as they know before they are loaded."""
    return [reward.name for reward in rewards.rewards if not reward.pointwise]


def groups_of(samples: Sequence[Sample], apart: Collection[int] = ()) -> list[list[int]]:
    """The places of each group's samples, which stand together, without those that are `apart`."""
    groups: list[list[int]] = []
    for place, sample in enumerate(samples):
        if place in apart:
            continue
        last = samples[groups[-1][-1]] if groups else None
        if last is None or last.record.id != sample.record.id or last.index >= sample.index:
            groups.append([])
        groups[-1].append(place)
    return groups


def joined(
    rewards: RewardSuite, batch: RewardBatch, groups: Sequence[Sequence[int]], parts: Sequence[RewardTable]
) -> RewardTable:
    """The tables of groups that were each scored by itself as one of the whole batch; NaN elsewhere."""
    table = RewardTable.empty(rewards.names, rewards.weights_for(batch.tasks))
    for places, part in zip(groups, parts, strict=True):
        table = table.filled(part, places=places)
    return table


def reward_batch(samples: Sequence[Sample], images: Sequence[Image.Image], bits: Tensor | None = None) -> RewardBatch:
    """What rewards see of decoded samples. Raises UserError for a picture to edit that cannot be read."""
    sources: dict[tuple[str, tuple[int, int]], Image.Image] = {}  # a group has one
    for sample, image in zip(samples, images, strict=True):
        key = (sample.record.id, image.size)
        if sample.record.image is not None and key not in sources:
            sources[key] = sample.record.image_to_edit(image.height, image.width)
    return RewardBatch(
        prompts=[sample.record.prompt for sample in samples],
        images=list(images),
        tasks=[sample.record.task for sample in samples],
        metadata=[sample.record.metadata for sample in samples],
        bits=None if bits is None else bits.cpu(),
        source_images=[
            [sources[key]] if (key := (sample.record.id, image.size)) in sources else []
            for sample, image in zip(samples, images, strict=True)
        ],
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
