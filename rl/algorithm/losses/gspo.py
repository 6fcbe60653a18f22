"""GSPO (2507.18071): GRPO's term with one ratio per image. The paper's own form has `centred_ratio: false`."""

from rl.algorithm.losses.grpo import GRPO


class GSPO(GRPO):
    name = "gspo"
    paper = "GSPO, 2507.18071"
    levels = ("sequence",)
