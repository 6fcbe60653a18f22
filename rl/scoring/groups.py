"""Groups whose samples rewards compare (`pointwise = False`): each is scored whole and by itself."""

from collections.abc import Collection, Sequence

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
    table = RewardTable.empty(rewards.names, rewards.weights_for(batch.tasks))
    for places, part in zip(groups, parts, strict=True):
        table = table.filled(part, places=places)
    return table
