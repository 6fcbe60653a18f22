"""The thread in which a server scores: requests that wait are scored together, each gets its own part back."""

import asyncio
import logging
import math
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from rewards.attempt import score_samples
from rewards.contract.base import RewardBatch
from rewards.remote.wire import ScoreRequest
from rewards.remote.wire_answers import Column
from rewards.suite import RewardSuite

logger = logging.getLogger(__name__)


@dataclass
class _Job:
    request: ScoreRequest
    done: "Future[dict[str, Column]]" = field(default_factory=Future)

    def goes_with(self, other: "_Job") -> bool:
        """Whether the samples of both fit in one RewardBatch."""
        shapes = [None if job.request.batch.bits is None else job.request.batch.bits.shape[1:] for job in (self, other)]
        return shapes[0] == shapes[1]


class ScoringThread:
    """Scores requests in the order they came, and those that came while it was busy together.

    Nothing waits for company: a request that finds the thread idle is scored at once. Rewards with `pointwise = False`
    see each request by itself. A request whose future was cancelled before its turn is not scored.

    Args:
        suite: the rewards; what `on_error` and `weight` say of them is the client's affair and not regarded.
        most_samples: of requests that are scored together.
    """

    def __init__(self, suite: RewardSuite, most_samples: int):
        self._suite, self._most = suite, most_samples
        self._waiting: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._held: _Job | None = None  # taken from the queue, but of no use to the batch it was taken for
        self._thread = threading.Thread(target=self._run, name="scoring", daemon=True)
        self._thread.start()

    def submit(self, request: ScoreRequest) -> "Future[dict[str, Column]]":
        """A column for each reward that the request names, when it has been scored."""
        job = _Job(request)
        self._waiting.put(job)
        return job.done

    def close(self, seconds: float = 10.0) -> None:
        """Ends the thread once everything that was submitted has been scored; waits for that so long at most, since a
        reward may hang."""
        self._waiting.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        with asyncio.Runner() as loop:  # one for all async rewards and batches: their clients keep their connections
            while True:
                jobs = self._take()
                if not jobs:
                    self._suite.close()  # here, where the event loop of their connections still is
                    return
                self._score(jobs, loop)
                del jobs  # their images would stay until the next ones come

    def _take(self) -> list[_Job]:
        """The next jobs that can be scored together; none at the end."""
        jobs, samples = [], 0
        while True:
            try:
                job, self._held = self._held or self._waiting.get(block=not jobs), None
            except queue.Empty:
                return jobs
            if job is None:
                if jobs:
                    self._waiting.put(None)  # seen again when these are done
                return jobs
            size = len(job.request.batch)
            if jobs and (samples + size > self._most or not job.goes_with(jobs[0])):
                self._held = job
                return jobs
            if job.done.set_running_or_notify_cancel():
                jobs.append(job)
                samples += size

    def _score(self, jobs: list[_Job], loop: asyncio.Runner) -> None:
        try:
            columns: list[dict[str, Column]] = [{} for _ in jobs]
            for index, name in enumerate(self._suite.names):
                asked = [place for place, job in enumerate(jobs) if name in job.request.rewards]
                together = [asked] if self._suite.rewards[index].pointwise else [[place] for place in asked]
                for places in together:
                    if places:
                        parts = self._column(index, [jobs[place].request.batch for place in places], loop)
                        for place, part in zip(places, parts, strict=True):
                            columns[place][name] = part
        except Exception as error:  # a fault of this package, since a reward's own are in its column
            logger.exception("scoring failed")
            for job in jobs:
                job.done.set_exception(error)
            return
        for job, result in zip(jobs, columns, strict=True):
            job.done.set_result(result)

    def _column(self, index: int, batches: Sequence[RewardBatch], loop: asyncio.Runner) -> list[Column]:
        """One reward's results, for each of the batches it scores together."""
        spec, reward = self._suite.specs[index], self._suite.rewards[index]
        batch = RewardBatch.joined(batches)
        rows = self._suite.rows_for(index, batch)
        whole = Column([math.nan] * len(batch))
        if rows:
            outcome = score_samples(
                reward,
                batch.select(rows),
                wait=loop.run,
                retries=spec.retries,
                first_fault_only=False,
            )
            for place, row in enumerate(rows):
                whole.scores[row] = outcome.scores[place]
                if place in outcome.faults:
                    whole.failures[row] = outcome.faults[place].text
                if outcome.details and outcome.details[place]:
                    whole.details[row] = outcome.details[place]
            for fault in dict.fromkeys(outcome.faults.values()):
                logger.warning("reward %r %s", spec.name, fault.text)
        return _split(whole, [len(part) for part in batches])


def _split(whole: Column, sizes: Sequence[int]) -> list[Column]:
    parts, start = [], 0
    for size in sizes:
        rows = range(start, start + size)
        parts.append(
            Column(
                whole.scores[start : start + size],
                {row - start: whole.failures[row] for row in rows if row in whole.failures},
                {row - start: whole.details[row] for row in rows if row in whole.details},
            )
        )
        start += size
    return parts
