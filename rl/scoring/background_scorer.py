"""A thread that scores images while others are decoded."""

from collections.abc import Iterator, Sequence
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
        self._pending: list[tuple[Sequence[int], Future[RewardTable]]] = []
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        # A new thread would start on the first GPU, whichever this process trains on.
        start = None if device is None else torch.cuda.set_device
        self._thread = ThreadPoolExecutor(1, "scoring", initializer=start, initargs=() if device is None else (device,))

    def __enter__(self) -> "BackgroundScorer":
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def add(self, batch: RewardBatch, numbers: Sequence[int]) -> None:
        """Has a batch scored. numbers: what its samples are called. Raises what scoring an earlier one has raised by
        now."""
        for _, future in self._pending:
            if future.done():
                future.result()
        if self._names:
            future = self._thread.submit(self._rewards.score, batch, only=self._names, numbers=numbers)
            self._pending.append((numbers, future))

    def tables(self) -> Iterator[tuple[Sequence[int], RewardTable]]:
        """The numbers and scores of each batch, in the order they were added. Waits for them, and raises what scoring
        raised."""
        for numbers, future in self._pending:
            yield numbers, future.result()
