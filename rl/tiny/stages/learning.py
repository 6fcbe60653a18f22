"""The AR model's losses on a step's samples, and the loop that learns from them.

Bits are learned by their cross-entropy given the bits before them, teacher-forced.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rl.tiny.stages.batches import drawing_rows, drawn_gaps
from rl.tiny.stages.lesson import Lesson, Samples
from rl.tiny.stages.model import GRID, grids, patches
from rl.tiny.stages.stage import Stage, flip, mixed_precision, pictures, randomness
from rl.tiny.world import Scene
from uniar.answering import answer_logits, encode_exchange
from uniar.conversations import Drawing
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.modeling_vision import UniARVisionModel


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
        rng, noise = randomness(seed, stage.name, step)
        with mixed_precision(fast):
            parts = losses(model, processor, vision, lesson.samples(rng), lesson.flipped, noise)
        stage.update(lesson.weighted(parts), **parts)

    stage.finish()
    batches, examined = 8, lesson.as_examined()
    sums: dict[str, float] = {}
    for number in range(batches):
        rng, noise = randomness(seed, stage.name, "held out", number)
        with torch.no_grad():
            parts = losses(model, processor, vision, examined.samples(rng), examined.flipped, noise)
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + float(value) / batches
    model.save_pretrained(stage.folder)
    stage.log(sums)
    return sums


def losses(
    model: UniARForConditionalGeneration,
    processor: Any,
    vision: UniARVisionModel,
    samples: Samples,
    flipped: float,
    noise: torch.Generator,
) -> dict[str, Tensor]:
    """Mean losses of a batch of each kind: `drawing` and `editing` in nats per bit, `answering` and `describing` in
    nats per token. flipped: most of the bits that are flipped of what the model reads."""

    def read(bits: Tensor) -> Tensor:
        return flip(bits, flipped, noise)

    captions, drawn_scenes = zip(*samples.drawings, strict=True)
    instructions, sources, targets = zip(*samples.edits, strict=True)
    groups = [
        drawn_scenes,
        targets,
        sources,
        [scene for scene, _, _ in samples.questions],
        [scene for scene, _, _ in samples.descriptions],
    ]
    drawn, target, source, asked, shown = encode(vision, [scene for group in groups for scene in group]).split(
        [len(group) for group in groups]
    )
    rows = drawing_rows(model, processor, captions)
    drawing_loss = _cross_entropy(drawn_gaps(model, rows, read(drawn)), drawn)
    rows = drawing_rows(model, processor, instructions, editing=True)
    editing_loss = _cross_entropy(drawn_gaps(model, rows, read(target), read(source)), target)
    return {
        "drawing": drawing_loss,
        "editing": editing_loss,
        "answering": _answer_loss(model, processor, read(asked), samples.questions),
        "describing": _answer_loss(model, processor, read(shown), samples.descriptions),
    }


@torch.no_grad()
def encode(vision: UniARVisionModel, scenes: Sequence[Scene]) -> Tensor:
    """Scenes → bits (B, T, L, S, K) uint8."""
    bits = vision.encode(patches(pictures(scenes)), grids(len(scenes)))
    return bits.view(len(scenes), GRID**2, *bits.shape[1:])


def _cross_entropy(gaps: Tensor, bits: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(gaps, bits.float())


def _answer_loss(
    model: UniARForConditionalGeneration, processor: Any, bits: Tensor, exchanges: Sequence[tuple[Scene, str, str]]
) -> Tensor:
    _, questions, answers = zip(*exchanges, strict=True)
    exchange = encode_exchange(processor, model.config, [Drawing(each, GRID) for each in bits], questions, answers)
    said = exchange.answer_mask
    return F.cross_entropy(answer_logits(model, exchange)[said], exchange.answers[said])
