"""DAPO (2503.14476): GRPO's term with a wider range upwards, averaged over all bits of the batch. Its dynamic sampling
is `rollout.dynamic_sampling`."""

from typing import ClassVar

from rl.algorithm.losses.grpo import GRPO

EPSILON_HIGH = 0.28


class DAPO(GRPO):
    name = "dapo"
    paper = "DAPO, 2503.14476"
    aggregation = "batch"
    epsilon_high = EPSILON_HIGH
    takes: ClassVar = {
        **GRPO.takes,
        "epsilon_high": f"1 + ε is the upper end of the range; null: {EPSILON_HIGH:g}, for m bits {EPSILON_HIGH:g}/√m",
    }
