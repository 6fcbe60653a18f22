"""What the AR model is shown in a step of supervised training: drawings, edits, questions and descriptions, some of
them spoiled on purpose."""

import random
from dataclasses import dataclass, replace

from torch import Tensor

from rl.tiny.captions import drawing
from rl.tiny.checks import check
from rl.tiny.edits import edit
from rl.tiny.questions import described, other_answer, question, question_scene
from rl.tiny.splits import Split
from rl.tiny.world import Scene


@dataclass(frozen=True)
class Samples:
    """Texts with the pictures that they go with."""

    drawings: list[tuple[str, Scene]]
    """caption, picture"""
    edits: list[tuple[str, Scene, Scene]]
    """instruction, the picture that is given, the one to draw"""
    questions: list[tuple[Scene, str, str]]
    """picture, question, answer"""
    descriptions: list[tuple[Scene, str, str]]
    """picture, request, description"""


@dataclass(frozen=True)
class Lesson:
    """A step's samples of each kind, and how much each loss weighs."""

    drawings: int
    edits: int
    questions: int
    descriptions: int
    drawing_weight: float
    editing_weight: float = 5.0
    redrawings: int = 0
    """of pictures that were checked (`rl.tiny.checks`); they are edits too"""
    checks: int = 0
    """what is wrong with a picture; they are questions too"""
    split: Split | None = "train"
    """the combinations that are shown; None: all"""
    wrong_captions: float = 0.0
    """share of drawings and redrawings whose caption is that of another picture"""
    wrong_instructions: float = 0.0
    """share of edits whose instruction is that of another edit"""
    wrong_answers: float = 0.0
    """share of questions whose answer is that of another question of the same kind"""
    no_prompt: float = 0.12
    """share of prompts that are dropped, so that guidance has its unconditional branch"""
    flipped: float = 0.05
    """most of the bits of what the model reads that are flipped; the bits it has to draw never are"""

    def weighted(self, parts: dict[str, Tensor]) -> Tensor:
        """The loss of a step, from nats per bit and nats per text token."""
        return (
            self.drawing_weight * parts["drawing"]
            + self.editing_weight * parts["editing"]
            + parts["answering"]
            + parts["describing"]
        )

    def as_examined(self) -> "Lesson":
        """Of combinations that are held out, without what makes learning harder: texts right, none dropped, no bit
        flipped."""
        return replace(
            self,
            split="held_out",
            wrong_captions=0.0,
            wrong_instructions=0.0,
            wrong_answers=0.0,
            no_prompt=0.0,
            flipped=0.0,
        )

    def samples(self, rng: random.Random) -> Samples:
        split = self.split

        def wrong(share: float) -> bool:
            # Where nothing is wrong no random number is drawn for it: that would change all that comes after.
            return share > 0 and rng.random() < share

        def maybe(prompt: str) -> str:
            return "" if rng.random() < self.no_prompt else prompt

        drawings = [drawing(rng, split) for _ in range(self.drawings)]
        captions = [drawing(rng, split).prompt if wrong(self.wrong_captions) else item.prompt for item in drawings]
        edits = [edit(rng, split) for _ in range(self.edits)]
        instructions = [
            edit(rng, split).instruction if wrong(self.wrong_instructions) else item.instruction for item in edits
        ]
        redrawings = [check(rng, split) for _ in range(self.redrawings)]
        instructions += [
            check(rng, split).instruction if wrong(self.wrong_captions) else item.instruction for item in redrawings
        ]
        questions = [question(rng, split) for _ in range(self.questions)]
        answers = [other_answer(rng, split, item) if wrong(self.wrong_answers) else item.answer for item in questions]
        checks = [check(rng, split) for _ in range(self.checks)]
        scenes = [question_scene(rng, split) for _ in range(self.descriptions)]
        pairs = [(item.source, item.target) for item in edits] + [(item.shown, item.redrawn) for item in redrawings]
        asked = [(item.scene, item.question, answer) for item, answer in zip(questions, answers, strict=True)]
        return Samples(
            [(maybe(caption), item.scene) for caption, item in zip(captions, drawings, strict=True)],
            [(maybe(text), *pair) for text, pair in zip(instructions, pairs, strict=True)],
            asked + [(item.shown, item.question, item.found) for item in checks],
            [(scene, *described(scene)) for scene in scenes],
        )
