"""Dr. GRPO (2503.20783): GRPO's term, without the bias that dividing by each sample's length has."""

from rl.algorithm.losses.grpo import GRPO


class DrGRPO(GRPO):
    """The constant is N, the bits of a sample, as no image is cut short; the paper's is a text's length limit."""

    name = "dr_grpo"
    paper = "Dr. GRPO, 2503.20783"
    aggregation = "constant"
