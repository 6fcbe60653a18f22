"""Policy losses, one file each: the term of a bit, how terms are averaged, which settings it takes.

A new loss is a new file and its line in registry.py. objective.py has what all share, so that a step is read there
and in the file of one loss. That is why there are more than a dozen short files.
"""

from rl.algorithm.losses.averaging import Extent, aggregate, share
from rl.algorithm.losses.bit_inputs import LossInputs
from rl.algorithm.losses.inputs import PolicyInputs
from rl.algorithm.losses.loss import Loss, Terms
from rl.algorithm.losses.objective import METRICS, importance_ratio, policy_loss
from rl.algorithm.losses.registry import LOSSES, loss_named
from rl.algorithm.losses.settings import LossSettings
from rl.algorithm.losses.token_inputs import TokenInputs

__all__ = [
    "LOSSES",
    "METRICS",
    "Extent",
    "Loss",
    "LossInputs",
    "LossSettings",
    "PolicyInputs",
    "Terms",
    "TokenInputs",
    "aggregate",
    "importance_ratio",
    "loss_named",
    "policy_loss",
    "share",
]
