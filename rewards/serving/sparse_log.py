"""A log that others cannot fill: of what repeats, the first few records per minute, and how many more there were."""

import logging
import time
from collections import Counter


class Sparse(logging.Filter):
    """Lets some records per period through; the first of the next period is followed by the number of those left out.

    Args:
        most_of_a_kind: records with one message, before its values are filled in; most: of all.
        seconds: a period.
    """

    def __init__(self, most_of_a_kind: int = 10, most: int = 50, seconds: float = 60.0):
        super().__init__()
        self._limits, self._seconds = (most_of_a_kind, most), seconds
        self._seen: Counter[tuple[str, str]] = Counter()
        self._ends, self._left_out = 0.0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        if (now := time.monotonic()) >= self._ends:
            if self._left_out:
                record.msg = f"{record.getMessage()} ({self._left_out} records before it were left out)"
                record.args = None
            self._seen.clear()
            self._ends, self._left_out = now + self._seconds, 0
        kind = (record.name, str(record.msg)[:200])
        self._seen[kind] += 1
        kept = self._seen[kind] <= self._limits[0] and len(self._seen) <= self._limits[1] and self._room()
        self._left_out += not kept
        return kept

    def _room(self) -> bool:
        return sum(min(count, self._limits[0]) for count in self._seen.values()) <= self._limits[1]


def log_sparsely() -> None:
    """All of this process's log to standard error, through one such filter."""
    handler = logging.StreamHandler()
    handler.addFilter(Sparse())
    logging.basicConfig(
        level=logging.WARNING, handlers=[handler], format="%(asctime)s %(levelname)s %(message)s", force=True
    )
