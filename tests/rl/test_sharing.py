"""Work shared out in batches that do not depend on how many processes there are."""

import pytest

from rl.distributed.sharing import even_batches


@pytest.mark.parametrize(
    ("count", "size", "group", "expected"),
    [
        (96, 16, 4, [12] * 8),
        (480, 64, 1, [60] * 8),
        (40, 16, 4, [8, 12, 8, 12]),
        (64, 16, 1, [16] * 4),
        (17, 16, 1, [8, 9]),
        (5, 16, 1, [5]),
        (3, 3, 3, [3]),
        (0, 16, 4, []),
    ],
)
def test_batches(count, size, group, expected):
    assert [len(batch) for batch in even_batches(count, size, group)] == expected


@pytest.mark.parametrize("group", [1, 3, 8])
def test_every_number_once_in_whole_groups_and_nobody_waits_long(group):
    for groups in range(1, 200):
        for size in (group, 2 * group, 7 * group):
            batches = even_batches(groups * group, size, group)
            assert [n for batch in batches for n in batch] == list(range(groups * group))
            assert all(batch.start % group == batch.stop % group == 0 for batch in batches)
            assert max(map(len, batches)) <= size
            assert max(map(len, batches)) - min(map(len, batches)) <= group
            least = -(-groups // (size // group))
            assert least <= len(batches) <= max(least, 4 * least // 3)
            if groups > least >= 30:
                assert len(batches) % 8 == 0 or len(batches) > groups - 8
