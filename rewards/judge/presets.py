"""What a judge is asked, and how its answer counts."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class JudgePreset:
    """Defaults of `vlm_judge`'s parameters of these names."""

    prompt: str
    scale: tuple[float, float]
    ratings: Mapping[str, float]
    rescale: str


_PLAIN = """\
This image was drawn for the following text:

{prompt}

How well does the image show what the text asks for? Rate it from 1 (not at all) to 5 (in every detail). End your answer
with a line of the form

Score: N"""

# The wording is this project's; the form of the three lines is the one that UnifiedReward models are trained to write.
_UNIFIED_REWARD = """\
An image was generated from a caption. Rate the image on three axes, each from 1 (worst) to 5 (best):

- Alignment Score: is everything that the caption says in the image, and as it says?
- Coherence Score: does the image hold together, without glitches, distorted objects or impossible parts?
- Style Score: how pleasing is the image to look at, whatever the caption says?

Answer in exactly this form, with a number in place of X, Y and Z:

Alignment Score (1-5): X
Coherence Score (1-5): Y
Style Score (1-5): Z

Text Caption: [{prompt}]"""

PRESETS = {
    "plain": JudgePreset(_PLAIN, (1, 5), {"Score": 1.0}, "range"),
    # (0.4·Align + 0.4·Coh + 0.2·Style) / 5, as in UniAR's RL run.
    "unified_reward": JudgePreset(
        _UNIFIED_REWARD, (1, 5), {"Alignment Score": 0.4, "Coherence Score": 0.4, "Style Score": 0.2}, "max"
    ),
}
