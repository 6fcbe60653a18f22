"""Work shared out in batches that do not depend on how many processes there are."""

from types import SimpleNamespace

import pytest

from rl.distributed.sharing import even_batches, fixed_batches, share_of


@pytest.mark.parametrize(
    ("count", "size", "group", "expected"),
    [
        (96, 16, 4, [12] * 8),
        (480, 64, 1, [60] * 8),
        (480, 16, 4, [16] * 24 + [12] * 8),
        (40, 16, 4, [12, 12, 8, 8]),
        (64, 16, 1, [16] * 4),
        (17, 16, 1, [9, 8]),
        (5, 16, 1, [5]),
        (3, 3, 3, [3]),
        (0, 16, 4, []),
    ],
)
def test_batches(count, size, group, expected):
    assert [len(batch) for batch in even_batches(count, size, group)] == expected


@pytest.mark.parametrize("group", [1, 3, 8])
def test_every_number_once_in_whole_groups(group):
    for groups in range(1, 200):
        for size in (group, 2 * group, 7 * group):
            batches = even_batches(groups * group, size, group)
            assert [n for batch in batches for n in batch] == list(range(groups * group))
            assert all(batch.start % group == batch.stop % group == 0 for batch in batches)
            assert max(map(len, batches)) <= size
            assert max(map(len, batches)) - min(map(len, batches)) <= group
            least = -(-groups // (size // group))
            assert least <= len(batches) <= max(least, 4 * least // 3)


def loads(batches: list[range], processes: int) -> list[int]:
    """Numbers that each of so many processes has."""
    shares = (share_of(batches, SimpleNamespace(process_index=n, num_processes=processes)) for n in range(processes))
    return [sum(map(len, share)) for share in shares]


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
@pytest.mark.parametrize("group", [1, 4])
def test_nobody_waits_long(processes, group):
    for groups in range(1, 300):
        count, size = groups * group, 4 * group
        even, full = (loads(made, processes) for made in (even_batches(count, size, group), fixed_batches(count, size)))
        assert max(even) <= max(full) + group
        if groups >= 24:  # six full batches
            assert max(even) - min(even) <= group * max(1, 2 * (len(even_batches(count, size, group)) % processes))
