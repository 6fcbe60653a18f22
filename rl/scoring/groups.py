"""Groups whose samples rewards compare (`pointwise = False`): each is scored whole and by itself."""

from collections.abc import Collection, Sequence

import torch

from rewards import RewardBatch, RewardSuite, RewardTable
from rl.policy.rollout import Sample


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
    values = torch.full((len(batch), len(rewards.names)), torch.nan, dtype=torch.float64)
    failed = torch.zeros_like(values, dtype=torch.bool)
    seconds, details = dict.fromkeys(rewards.names, 0.0), {}
    for places, part in zip(groups, parts, strict=True):
        values[places], failed[places] = part.values, part.failed
        seconds = {name: seconds[name] + part.seconds[name] for name in seconds}
        for name, rows in part.details.items():
            said = details.setdefault(name, [None] * len(batch))
            for place, row in zip(places, rows, strict=True):
                said[place] = row
    return RewardTable(rewards.names, values, rewards.weights_for(batch.tasks), failed, seconds, details)
