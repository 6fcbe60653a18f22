"""Stage 3: supervised training of the AR model on drawing, editing and answering together.

Bits are learned by their cross-entropy given the bits before them, teacher-forced. It ends early on purpose: what is
left to learn is for reinforcement learning.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoProcessor

from tiny.batches import drawing_rows, drawn_gaps
from tiny.captions import drawing
from tiny.edits import edit
from tiny.model import GRID, grids, new_policy, patches
from tiny.questions import described, question, question_scene
from tiny.splits import Split
from tiny.train_tokenizer import load_tokenizer
from tiny.training import Stage, flip, mixed_precision, pictures, randomness
from tiny.world import Scene
from uniar.answering import Drawing, answer_logits, encode_exchange
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.modeling_vision import UniARVisionModel

STEPS = 5500
DRAWINGS, EDITS, QUESTIONS, DESCRIPTIONS = 2, 16, 40, 20
"""samples a step; few drawings, as drawing is what is left to reinforcement learning"""
WEIGHTS = {"drawing": 0.7, "editing": 5.0, "answering": 1.0, "describing": 1.0}
"""of the losses: nats a bit, nats a bit, nats a text token, nats a text token"""
NO_PROMPT = 0.12
"""share of prompts that are dropped, so that guidance has its unconditional branch"""
FLIPPED = 0.05
"""most of the bits of what the model reads that are flipped; the bits it has to draw never are"""


def train_policy(folder: Path, *, seed: int, steps: int = STEPS, fast: bool = True) -> dict[str, float]:
    """Trains the AR model into `folder`; needs stage 2. Returns its held-out losses."""
    torch.manual_seed(seed)
    vision = load_tokenizer(folder)
    processor = AutoProcessor.from_pretrained(folder)
    model = new_policy(folder, seed)
    model.model.visual.load_state_dict(vision.state_dict())
    model.model.visual.requires_grad_(False)
    for merger in (model.model.visual.merger, model.model.visual.deepstack_merger_list):
        merger.requires_grad_(True)
    model.set_attn_implementation("eager")  # the backward of torch's fused attention takes half a step on a CPU
    stage = Stage("policy", folder, model, steps=steps, learning_rate=1.5e-3, weight_decay=0.1, seed=seed)
    for step in stage:
        with mixed_precision(fast):
            parts = losses(model, processor, vision, "train", *randomness(seed, "policy", step), NO_PROMPT, FLIPPED)
        stage.update(sum(WEIGHTS[name] * value for name, value in parts.items()), **parts)

    stage.finish()
    sums = dict.fromkeys(WEIGHTS, 0.0)
    batches = 8
    for number in range(batches):
        with torch.no_grad():
            parts = losses(model, processor, vision, "held_out", *randomness(seed, "policy", "held out", number))
        for name, value in parts.items():
            sums[name] += float(value) / batches
    model.save_pretrained(folder)
    stage.log(sums)
    return sums


def losses(
    model: UniARForConditionalGeneration,
    processor: Any,
    vision: UniARVisionModel,
    split: Split,
    rng: random.Random,
    noise: torch.Generator,
    no_prompt: float = 0.0,
    flipped: float = 0.0,
) -> dict[str, Tensor]:
    """Mean losses of a batch of each kind: `drawing` and `editing` in nats a bit, `answering` and `describing` in nats
    a token."""

    def read(bits: Tensor) -> Tensor:
        return flip(bits, flipped, noise)

    def maybe(prompt: str) -> str:
        return "" if rng.random() < no_prompt else prompt

    drawings = [drawing(rng, split) for _ in range(DRAWINGS)]
    edits = [edit(rng, split) for _ in range(EDITS)]
    questions = [question(rng, split) for _ in range(QUESTIONS)]
    descriptions = [question_scene(rng, split) for _ in range(DESCRIPTIONS)]
    scenes = [
        *(item.scene for item in drawings),
        *(item.target for item in edits),
        *(item.source for item in edits),
        *(item.scene for item in questions),
        *descriptions,
    ]
    drawn, target, source, asked, shown = encode(vision, scenes).split(
        [DRAWINGS, EDITS, EDITS, QUESTIONS, DESCRIPTIONS]
    )

    rows = drawing_rows(model, processor, [maybe(item.prompt) for item in drawings])
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
