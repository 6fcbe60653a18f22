"""Held-out work shared among processes so that the result does not depend on how many there are.

A result depends in its last digits on the batch it was computed in, and a drawn bit can turn on them. So the batches
are fixed beforehand, and whole batches are handed out. Evaluations have even ones; benchmarks full ones, which stay the
same where more samples are asked for of a folder that has some.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate.utils import broadcast_object_list, gather_object

from rewards import RewardTable

if TYPE_CHECKING:
    from accelerate import Accelerator

Row = TypeVar("Row")


def fixed_batches(count: int, size: int) -> list[range]:
    """The numbers 0 to count - 1 in batches of `size`, the last one shorter."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def even_batches(count: int, size: int, group: int = 1) -> list[range]:
    """The numbers 0 to count - 1 in batches of at most `size`, as equal as whole groups of `group` allow; larger first.

    Up to a third more batches than need be, so that each of 8, 4 or 2 processes has as many: their number cannot depend
    on how many processes there are, as what is computed depends in its last digits on the batch it is computed in.
    """
    groups = -(-count // group)
    least = -(-groups // max(1, size // group))
    shared = (-(-least // processes) * processes for processes in (8, 4, 2, 1))
    batches = next(number for number in shared if number <= max(least, min(groups, 4 * least // 3)))
    small, larger = divmod(groups, max(1, batches))
    edges = [min(count, group * (number * small + min(number, larger))) for number in range(batches + 1)]
    return [range(start, stop) for start, stop in pairwise(edges)]


def share_of(batches: Sequence[range], accelerator: "Accelerator | None") -> list[range]:
    """The batches of this process: every n-th of n processes."""
    if accelerator is None:
        return list(batches)
    return list(batches[accelerator.process_index :: accelerator.num_processes])


def in_order(rows: dict[int, Row], accelerator: "Accelerator | None") -> list[Row]:
    """Rows by number, of all processes together, in the order of their numbers; the same list on every process."""
    if accelerator is not None and accelerator.num_processes > 1:
        rows = {number: row for share in gather_object([rows]) for number, row in share.items()}
    return [rows[number] for number in sorted(rows)]


def shares_at_main(share: Row, accelerator: "Accelerator | None") -> list[Row]:
    """What each process has, in the main process; nothing in the others. All call it. For what is large, such as
    pictures: `gather_object` would send all of it to every process."""
    if accelerator is None or accelerator.num_processes == 1:
        return [share]
    shares: list[Any] | None = [None] * accelerator.num_processes if accelerator.is_main_process else None
    torch.distributed.gather_object(share, shares)
    return shares or []


def from_main(value: Row, accelerator: "Accelerator | None") -> Row:
    """What the main process has, on every process. All call it."""
    if accelerator is None or accelerator.num_processes == 1:
        return value
    return broadcast_object_list([value])[0]


def gathered(table: RewardTable, accelerator: "Accelerator") -> RewardTable:
    """The scores of all processes, in their order, without details; the same table on every process. Each has equally
    many rows."""
    here = torch.cat([table.values, table.weights, table.failed.double()], 1)
    values, weights, failed = accelerator.gather(here.to(accelerator.device)).cpu().chunk(3, 1)
    return RewardTable(table.names, values, weights, failed.bool(), table.seconds)
