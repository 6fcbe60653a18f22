"""One reward, one batch: retries, and which samples a failed batch failed by."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rewards.base import RewardBatch
from rewards.contract import BrokenContract, described, read_scores
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


def score_samples(
    call: Callable[[RewardBatch], Any],
    batch: RewardBatch,
    *,
    name: str,
    retries: int,
    pointwise: bool,
    first_fault_only: bool,
) -> tuple[list[float], dict[int, Fault]]:
    """Scores B samples.

    Args:
        call: gives a reward's result for a batch.
        name: the reward's, for the log.
        retries: further attempts after it raised anything but a UserError.
        pointwise: whether a batch that keeps raising may be scored sample by sample. Those that score alone keep their
            score; a reward that compares samples would return another quantity there.
        first_fault_only: whether the caller stops at the first fault, so that looking further is of no use.

    Returns B floats, NaN where the reward does not apply or failed, and the faults by sample.
    """
    scores, faults = _attempt(call, batch, name, retries)
    raised = bool(faults) and faults[min(faults)].cause is not None
    if not raised or not pointwise or len(batch) == 1:
        return scores, faults
    scores_alone, faults_alone = [], {}
    for index in range(len(batch)):
        [score], failed = _attempt(call, batch.select([index]), name, retries=0)
        scores_alone.append(score)
        if failed:
            faults_alone[index] = Fault(failed[0].text, index, failed[0].cause)
            if first_fault_only:
                return scores_alone, faults_alone
    # Where each sample is fine alone, the batch as a whole is to blame: no reason to lose scores, but one to stop.
    return (scores, faults) if first_fault_only else (scores_alone, faults_alone)


def _attempt(
    call: Callable[[RewardBatch], Any], batch: RewardBatch, name: str, retries: int
) -> tuple[list[float], dict[int, Fault]]:
    count = len(batch)
    for left in range(retries, -1, -1):
        try:
            scores, texts = read_scores(call(batch), count)
            return scores, {index: Fault(text, index) for index, text in texts.items()}
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
    return [math.nan] * count, dict.fromkeys(range(count), fault)
