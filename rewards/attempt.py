"""One reward, one batch: retries, and which samples a failed batch failed by."""

import logging
import math
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from rewards.contract.base import Reward, RewardBatch
from rewards.contract.protocol import BrokenContract, Details, described, read_scores, split_details
from uniar.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fault:
    """Why a score is missing.

    Attributes: `text` (what the reward did), `index` (the sample, or None where the batch failed as a whole and no
    single sample is known to be the reason), `cause` (what it raised).
    """

    text: str
    index: int | None
    cause: BaseException | None = None


@dataclass(frozen=True)
class Outcome:
    """What one reward made of B samples: `scores` (NaN where it does not apply or failed), the `faults` by sample, and
    the `details` of each sample, an empty list where the reward gave none at all."""

    scores: list[float]
    faults: dict[int, Fault] = field(default_factory=dict)
    details: list[Details | None] = field(default_factory=list)


class _Ended(Exception):
    """Stands for what would end the event loop of an `async` reward; its cause is that."""


def score_samples(
    reward: Reward,
    batch: RewardBatch,
    *,
    wait: Callable[[Coroutine], Any] | None,
    retries: int,
    first_fault_only: bool,
) -> Outcome:
    """Scores B samples. Whatever the reward raises is its failure, `sys.exit` included; but not a KeyboardInterrupt of
    the main thread, which is the user's.

    A batch that keeps raising is scored sample by sample where the reward is pointwise, and those that score alone keep
    their score; a reward that compares samples would return another quantity there.

    Args:
        wait: runs the coroutine of an `async` reward to its end.
        retries: further attempts after it raised anything but a UserError.
        first_fault_only: whether the caller stops at the first fault, so that looking further is of no use.
    """

    def call(part: RewardBatch) -> Any:
        return wait(_contained(reward.score(part))) if reward.is_async else reward.score(part)

    whole = _attempt(call, batch, reward.name, retries)
    raised = bool(whole.faults) and whole.faults[min(whole.faults)].cause is not None
    if not raised or not reward.pointwise or len(batch) == 1:
        return whole
    scores, faults, details = [], {}, []
    for index in range(len(batch)):
        alone = _attempt(call, batch.select([index]), reward.name, retries=0)
        scores += alone.scores
        details += alone.details or [None]
        if alone.faults:
            faults[index] = Fault(alone.faults[0].text, index, alone.faults[0].cause)
            if first_fault_only:
                return Outcome(scores, faults)
    # Where each sample is fine alone, the batch as a whole is to blame: no reason to lose scores, but one to stop.
    return whole if first_fault_only else Outcome(scores, faults, details)


def _attempt(call: Callable[[RewardBatch], Any], batch: RewardBatch, name: str, retries: int) -> Outcome:
    count = len(batch)
    for left in range(retries, -1, -1):
        try:
            result, details = split_details(call(batch))
            scores, texts = read_scores(result, count)
            return Outcome(scores, {index: Fault(text, index) for index, text in texts.items()}, details)
        except BrokenContract as error:  # this and the next would only come again
            fault = Fault(str(error), 0 if count == 1 else None)
            break
        except UserError as error:
            fault = Fault(f"failed: {str(error).rstrip('.')}", 0 if count == 1 else None, error)
            break
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise
            cause = error.__cause__ if isinstance(error, _Ended) else error
            fault = Fault(f"raised {described(cause)}", 0 if count == 1 else None, cause)
            if left:
                logger.warning("reward %r %s; trying again.", name, fault.text)
    return Outcome([math.nan] * count, dict.fromkeys(range(count), fault))


async def _contained(coroutine: Coroutine) -> Any:
    try:
        return await coroutine
    except (SystemExit, KeyboardInterrupt) as error:  # a task passes these on to whatever runs its loop
        raise _Ended from error
