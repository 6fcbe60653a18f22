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
    sources: bool = False
    """whether the judge sees the pictures that an edit began with"""
    by_edit_type: bool = False
    """whether the kind of edit, in the sample's metadata, decides what is asked and rated"""


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

QUESTION = """\
Look at the image and answer the question with yes or no. Answer yes only where the image shows it clearly, and begin
your answer with the word.

{question}"""

# The criteria of EditScore (arXiv 2509.23909) and UnifiedReward-Edit, in this project's words.
_EDIT = """\
The first picture is an original, the last is what became of it when somebody was asked to edit it:

{prompt}

Rate the edit on three axes, each from 1 (worst) to 5 (best):

- Instruction Score: was all done that was asked for, and in the right place?
- Preservation Score: is everything else as it was: who and what is in the picture, its style, light and framing?
- Quality Score: does the edited picture hold together, without glitches, seams or impossible parts?

A picture that was not changed at all has an Instruction Score of 1. Answer in exactly this form, with a number in place
of X, Y and Z:

Instruction Score (1-5): X
Preservation Score (1-5): Y
Quality Score (1-5): Z"""

PAIR = """\
Two pictures were drawn for the following text:

{prompt}

Which of them shows better what the text asks for? If they show it equally well, which is the better picture: without
glitches, distorted objects or impossible parts? End your answer with a line of the form

Better: N

where N is 1 for the first picture, 2 for the second, or 0 if neither is better."""

EDIT_PAIR = """\
The first picture is an original. The other two are what became of it when two people were asked to edit it:

{prompt}

Which is the better edit? First of all, was that done which was asked for? Then, is everything else as it was, and does
the picture hold together? End your answer with a line of the form

Better: N

where N is 1 for the first of the two edits, 2 for the second, or 0 if neither is better."""

PRESETS = {
    "plain": JudgePreset(_PLAIN, (1, 5), {"Score": 1.0}, "range"),
    # (0.4·Align + 0.4·Coh + 0.2·Style) / 5, as in UniAR's RL run.
    "unified_reward": JudgePreset(
        _UNIFIED_REWARD, (1, 5), {"Alignment Score": 0.4, "Coherence Score": 0.4, "Style Score": 0.2}, "max"
    ),
    "edit": JudgePreset(
        _EDIT,
        (1, 5),
        {"Instruction Score": 0.4, "Preservation Score": 0.4, "Quality Score": 0.2},
        "range",
        sources=True,
    ),
    "imgedit": JudgePreset("{prompt}", (1, 5), {"Score": 1.0}, "range", sources=True, by_edit_type=True),
}
