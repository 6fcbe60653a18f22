"""Which settings of a policy loss go together: asked by a recipe when it is read, and by rl/algorithm/losses.py
itself."""

from typing import Literal

Loss = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "dppo_tv"]
RatioLevel = Literal["bit", "visual_token", "sequence"]

CISPO_CAP = 5.0
LEVEL_OF = {"gspo": "sequence", "dppo_tv": "bit"}
"""Losses that are defined at one ratio level only."""


def conflicting_setting(
    loss: str, level: str, epsilon: float | None, epsilon_high: float | None, delta: float | None
) -> tuple[str, str] | None:
    """The first setting of `algorithm` that does not go with the others, and a sentence that says why; else None."""
    if (needed := LEVEL_OF.get(loss, level)) != level:
        return "ratio_level", f"algorithm.ratio_level is {level}; {loss} needs {needed} (or null)."
    if loss == "cispo" and epsilon_high is not None and epsilon_high <= 1:
        return "epsilon_high", (
            f"algorithm.epsilon_high is {epsilon_high:g}; for cispo it is the cap of the ratio itself, so at most 1 "
            f"would scale every gradient alike; expected above 1, such as {CISPO_CAP:g}."
        )
    if loss == "dppo_tv":
        for key, value in (("epsilon", epsilon), ("epsilon_high", epsilon_high)):
            if value is not None:
                return key, f"algorithm.{key} has no use in dppo_tv; set algorithm.delta, or leave it null."
    elif delta is not None:
        return "delta", f"algorithm.delta has no use in {loss}; it belongs to dppo_tv."
    return None
