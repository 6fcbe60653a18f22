"""What the AR model is shown in a step of supervised training: drawings, edits, questions and descriptions, and their
losses.

Bits are learned by their cross-entropy given the bits before them, teacher-forced.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rl.tiny.batches import drawing_rows, drawn_gaps
from rl.tiny.captions import drawing
from rl.tiny.edits import edit
from rl.tiny.model import GRID, grids, patches
from rl.tiny.questions import described, question, question_scene
from rl.tiny.splits import Split
from rl.tiny.training import Stage, flip, mixed_precision, pictures, randomness
from rl.tiny.world import Scene
from uniar.answering import answer_logits, encode_exchange
from uniar.conversations import Drawing
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.modeling_vision import UniARVisionModel


@dataclass(frozen=True)
class Lesson:
    """A step's samples of each kind, and how much each loss weighs."""

    drawings: int
    edits: int
    questions: int
    descriptions: int
    drawing_weight: float
    editing_weight: float = 5.0
    wrong_captions: float = 0.0
    """share of drawings whose caption is that of another picture"""
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
        """Without what makes learning harder: right captions, none dropped, no bit flipped."""
        return replace(self, wrong_captions=0.0, no_prompt=0.0, flipped=0.0)


def freeze_tokenizer(model: UniARForConditionalGeneration) -> None:
    """Of the vision encoder only the mergers are trained, through which the text layers see; bits stay as they are."""
    visual = model.model.visual.requires_grad_(False)
    for merger in (visual.merger, visual.deepstack_merger_list):
        merger.requires_grad_(True)


def learn(
    stage: Stage,
    model: UniARForConditionalGeneration,
    processor: Any,
    vision: UniARVisionModel,
    lesson: Lesson,
    *,
    seed: int,
    fast: bool,
) -> dict[str, float]:
    """Runs `stage` and stores the model. Returns its losses on held-out samples."""
    for step in stage:
        with mixed_precision(fast):
            parts = losses(model, processor, vision, "train", *randomness(seed, stage.name, step), lesson)
        stage.update(lesson.weighted(parts), **parts)

    stage.finish()
    batches = 8
    sums: dict[str, float] = {}
    for number in range(batches):
        drawn = randomness(seed, stage.name, "held out", number)
        with torch.no_grad():
            parts = losses(model, processor, vision, "held_out", *drawn, lesson.as_examined())
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + float(value) / batches
    model.save_pretrained(stage.folder)
    stage.log(sums)
    return sums


def losses(
    model: UniARForConditionalGeneration,
    processor: Any,
    vision: UniARVisionModel,
    split: Split,
    rng: random.Random,
    noise: torch.Generator,
    lesson: Lesson,
) -> dict[str, Tensor]:
    """Mean losses of a batch of each kind: `drawing` and `editing` in nats per bit, `answering` and `describing` in
    nats per token."""

    def read(bits: Tensor) -> Tensor:
        return flip(bits, lesson.flipped, noise)

    def maybe(prompt: str) -> str:
        return "" if rng.random() < lesson.no_prompt else prompt

    drawings = [drawing(rng, split) for _ in range(lesson.drawings)]
    # Where no caption is wrong no random number is drawn for it: that would change all that comes after.
    captions = [
        drawing(rng, split).prompt if lesson.wrong_captions and rng.random() < lesson.wrong_captions else item.prompt
        for item in drawings
    ]
    edits = [edit(rng, split) for _ in range(lesson.edits)]
    questions = [question(rng, split) for _ in range(lesson.questions)]
    descriptions = [question_scene(rng, split) for _ in range(lesson.descriptions)]
    scenes = [
        *(item.scene for item in drawings),
        *(item.target for item in edits),
        *(item.source for item in edits),
        *(item.scene for item in questions),
        *descriptions,
    ]
    drawn, target, source, asked, shown = encode(vision, scenes).split(
        [lesson.drawings, lesson.edits, lesson.edits, lesson.questions, lesson.descriptions]
    )

    rows = drawing_rows(model, processor, [maybe(caption) for caption in captions])
    drawing_loss = _cross_entropy(drawn_gaps(model, rows, read(drawn)), drawn)
    rows = drawing_rows(model, processor, [maybe(item.instruction) for item in edits], editing=True)
    editing_loss = _cross_entropy(drawn_gaps(model, rows, read(target), read(source)), target)
    exchanges = [(item.question, item.answer) for item in questions]
    return {
        "drawing": drawing_loss,
        "editing": editing_loss,
        "answering": _answer_loss(model, processor, read(asked), exchanges),
        "describing": _answer_loss(model, processor, read(shown), [described(scene) for scene in descriptions]),
    }


@torch.no_grad()
def encode(vision: UniARVisionModel, scenes: Sequence[Scene]) -> Tensor:
    """Scenes → bits (B, T, L, S, K) uint8."""
    bits = vision.encode(patches(pictures(scenes)), grids(len(scenes)))
    return bits.view(len(scenes), GRID**2, *bits.shape[1:])


def _cross_entropy(gaps: Tensor, bits: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(gaps, bits.float())


def _answer_loss(
    model: UniARForConditionalGeneration, processor: Any, bits: Tensor, exchanges: Sequence[tuple[str, str]]
) -> Tensor:
    questions, answers = zip(*exchanges, strict=True)
    exchange = encode_exchange(processor, model.config, [Drawing(each, GRID) for each in bits], questions, answers)
    said = exchange.answer_mask
    return F.cross_entropy(answer_logits(model, exchange)[said], exchange.answers[said])
