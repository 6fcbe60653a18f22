"""Samples as rewards see them, and groups that they compare (`pointwise = False`): each is scored whole, by itself."""

from collections.abc import Collection, Iterator, Sequence

import torch
from PIL import Image

from rewards import RewardBatch, RewardSuite, RewardTable
from rl.policy.completion import Completion
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


def reward_batch(
    samples: Sequence[Sample],
    images: Sequence[Image.Image | None],
    completions: Sequence[Completion] | None = None,
    places: Sequence[int] | None = None,
) -> RewardBatch:
    """What rewards see of the samples at `places` (None: of all). completions: what they made; None where only the
    images are left of it. Raises UserError for a picture to edit that cannot be read."""
    places = range(len(samples)) if places is None else places
    samples, images = [samples[place] for place in places], [images[place] for place in places]
    made = None if completions is None else [completions[place] for place in places]
    sources: dict[tuple[str, tuple[int, int] | None], Image.Image] = {}  # a group has one
    keys = [(sample.record.id, image and image.size) for sample, image in zip(samples, images, strict=True)]
    for key, sample, image in zip(keys, samples, images, strict=True):
        if sample.record.image is not None and key not in sources:
            source = sample.record.load_image() if image is None else sample.record.image_to_edit(*image.size[::-1])
            sources[key] = source
    return RewardBatch(
        prompts=[sample.record.prompt for sample in samples],
        images=images,
        tasks=[sample.record.task for sample in samples],
        metadata=[sample.record.metadata for sample in samples],
        bits=None if made is None else _bits(made),
        source_images=[[sources[key]] if key in sources else [] for key in keys],
        texts=None if made is None else [list(one.texts) for one in made],
    )


def _bits(completions: Sequence[Completion]) -> torch.Tensor | None:
    """(B, T, L, S, K) where the drawings have one shape; None where they do not, or some is missing."""
    drawings = [completion.drawing for completion in completions]
    if len({completion.shape for completion in completions}) != 1 or drawings[0] is None:
        return None
    return torch.stack([drawing.bits for drawing in drawings]).cpu()


def comparisons(
    rewards: RewardSuite,
    samples: Sequence[Sample],
    images: Sequence[Image.Image | None],
    completions: Sequence[Completion] | None = None,
    apart: Collection[int] = (),
) -> Iterator[tuple[list[str], list[int], RewardBatch]]:
    """What rewards that compare samples are to be asked, each group by itself: their names, the places of its samples,
    and these. Those that need images are asked about the samples that have one. Samples that are `apart` are not."""
    compared = [reward for reward in rewards.rewards if not reward.pointwise]
    for group in groups_of(samples, apart) if compared else []:
        for needs_image in (True, False):
            names = [reward.name for reward in compared if reward.needs_image == needs_image]
            places = [place for place in group if images[place] is not None or not needs_image]
            if names and places:
                yield names, places, reward_batch(samples, images, completions, places)


def compare_samples(
    rewards: RewardSuite,
    samples: Sequence[Sample],
    images: Sequence[Image.Image | None],
    completions: Sequence[Completion] | None = None,
) -> RewardTable:
    """The scores of the rewards that compare samples, which are in whole groups."""
    table = RewardTable.empty(rewards.names, rewards.weights_for([sample.record.task for sample in samples]))
    for names, places, batch in comparisons(rewards, samples, images, completions):
        table = table.filled(rewards.score(batch, only=names, numbers=places), names, places)
    return table
