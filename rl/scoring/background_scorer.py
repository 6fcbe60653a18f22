"""A thread that scores images while others are decoded."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from rewards import RewardBatch, RewardSuite, RewardTable


class BackgroundScorer:
    """A thread that scores batches with some rewards of a suite, in the order they are added.

    As a context it does not end before its thread is idle; batches whose turn has not come when the block is left by an
    exception are given up.
    """

    def __init__(self, rewards: RewardSuite, names: Sequence[str]):
        self._rewards, self._names = rewards, tuple(names)
        self._pending: list[Future[RewardTable]] = []
        self._count = 0
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        # A new thread would start on the first GPU, whichever this process trains on.
        start = None if device is None else torch.cuda.set_device
        self._thread = ThreadPoolExecutor(1, "scoring", initializer=start, initargs=() if device is None else (device,))

    def __enter__(self) -> "BackgroundScorer":
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def add(self, batch: RewardBatch) -> None:
        """Has a batch scored. Raises what scoring an earlier one has raised by now."""
        for future in self._pending:
            if future.done():
                future.result()
        first, self._count = self._count, self._count + len(batch)
        if self._names:
            self._pending.append(self._thread.submit(self._rewards.score, batch, only=self._names, first=first))

    def table(self) -> RewardTable | None:
        """All batches' scores, in the order they were added; None where there are no batches or no rewards. Waits for
        them, and raises what scoring raised."""
        tables = [future.result() for future in self._pending]
        return RewardTable.cat(tables) if tables else None
