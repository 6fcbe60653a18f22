"""One reward, one batch: retries, and which samples a failed batch failed by."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rewards.base import RewardBatch
from rewards.contract import BrokenContract, Details, described, read_scores, split_details
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
    cause: Exception | None = None


@dataclass(frozen=True)
class Outcome:
    """What one reward made of B samples: `scores` (NaN where it does not apply or failed), the `faults` by sample, and
    the `details` of each sample, an empty list where the reward gave none at all."""

    scores: list[float]
    faults: dict[int, Fault] = field(default_factory=dict)
    details: list[Details | None] = field(default_factory=list)


def score_samples(
    call: Callable[[RewardBatch], Any],
    batch: RewardBatch,
    *,
    name: str,
    retries: int,
    pointwise: bool,
    first_fault_only: bool,
) -> Outcome:
    """Scores B samples.

    Args:
        call: gives a reward's result for a batch.
        name: the reward's, for the log.
        retries: further attempts after it raised anything but a UserError.
        pointwise: whether a batch that keeps raising may be scored sample by sample. Those that score alone keep their
            score; a reward that compares samples would return another quantity there.
        first_fault_only: whether the caller stops at the first fault, so that looking further is of no use.
    """
    whole = _attempt(call, batch, name, retries)
    raised = bool(whole.faults) and whole.faults[min(whole.faults)].cause is not None
    if not raised or not pointwise or len(batch) == 1:
        return whole
    scores, faults, details = [], {}, []
    for index in range(len(batch)):
        alone = _attempt(call, batch.select([index]), name, retries=0)
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
        except Exception as error:
            fault = Fault(f"raised {described(error)}", 0 if count == 1 else None, error)
            if left:
                logger.warning("reward %r %s; trying again.", name, fault.text)
    return Outcome([math.nan] * count, dict.fromkeys(range(count), fault))
