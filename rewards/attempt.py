"""One reward, one batch: retries, and which samples a failed batch failed by."""

import logging
import math
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from rewards.contract.base import Reward, RewardBatch
from rewards.contract.protocol import BrokenContract, Details, described, read_scores, split_details
from uniar.errors import UserError

logger = logging.getLogger(__name__)

_AUTOCAST_DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


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
    the `details` of each sample, an empty list where the reward gave none at all, and the `seconds` that it took."""

    scores: list[float]
    faults: dict[int, Fault] = field(default_factory=dict)
    details: list[Details | None] = field(default_factory=list)
    seconds: float = 0.0


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

    started = time.perf_counter()
    with ExitStack() as stack:
        if not reward.wants_policy:
            # The policy may come with its autocast, which is no business of the other rewards.
            for kind in _AUTOCAST_DEVICES:
                stack.enter_context(torch.autocast(kind, enabled=False))
        parts, outcomes = [batch], []
        for part in parts:  # the whole batch, and then perhaps each sample alone
            for left in range(retries if part is batch else 0, -1, -1):
                # Called from here, not from a function of its own: who writes a reward reads its tracebacks.
                try:
                    result = reward.score(part)
                    outcome = _read(wait(_contained(result)) if reward.is_async else result, len(part))
                    break
                except BaseException as error:
                    outcome, final = _failure(error, len(part))
                    if final:
                        break
                    if left:
                        logger.warning("reward %r %s; trying again.", reward.name, outcome.faults[0].text)
            outcomes.append(outcome)
            if part is batch:
                raised = bool(outcome.faults) and outcome.faults[min(outcome.faults)].cause is not None
                if raised and reward.pointwise and len(batch) > 1:
                    parts += [batch.select([index]) for index in range(len(batch))]
            elif outcome.faults and first_fault_only:
                break
    return replace(_joined(outcomes, len(batch), first_fault_only), seconds=time.perf_counter() - started)


def _joined(outcomes: list[Outcome], count: int, first_fault_only: bool) -> Outcome:
    """Of the batch as a whole, and of as many samples as were then scored alone."""
    whole, *alone = outcomes
    scores, details = [], []
    faults = {
        index: Fault(one.faults[0].text, index, one.faults[0].cause) for index, one in enumerate(alone) if one.faults
    }
    for one in alone:
        scores += one.scores
        details += one.details or [None]
    if faults and first_fault_only:
        return Outcome(scores, faults)
    # Where each sample is fine alone, the batch as a whole is to blame: no reason to lose scores, but one to stop.
    return whole if first_fault_only or not alone else Outcome(scores, faults, details)


def _read(result: Any, count: int) -> Outcome:
    """What a reward returned for `count` samples. Raises BrokenContract."""
    result, details = split_details(result)
    scores, texts = read_scores(result, count)
    return Outcome(scores, {index: Fault(text, index) for index, text in texts.items()}, details)


def _failure(error: BaseException, count: int) -> tuple[Outcome, bool]:
    """What a reward raised, as the fault of all its samples, and whether it would only come again. Raises the
    KeyboardInterrupt of the main thread."""
    if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
        raise error
    index = 0 if count == 1 else None
    if isinstance(error, BrokenContract):
        fault = Fault(str(error), index)
    elif isinstance(error, UserError):
        fault = Fault(f"failed: {str(error).rstrip('.')}", index, error)
    else:
        cause = error.__cause__ if isinstance(error, _Ended) else error
        fault = Fault(f"raised {described(cause)}", index, cause)
    return Outcome([math.nan] * count, dict.fromkeys(range(count), fault)), isinstance(
        error, BrokenContract | UserError
    )


async def _contained(coroutine: Coroutine) -> Any:
    try:
        return await coroutine
    except (SystemExit, KeyboardInterrupt) as error:  # a task passes these on to whatever runs its loop
        raise _Ended from error
