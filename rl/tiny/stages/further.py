"""Stages `combinations` and `noise`: the AR model trains on, with what stage `policy` left out and with what spoils it.

`combinations` shows all combinations of the world, of which `policy` saw four in five, many drawings, and checks of
drawings. Reinforcement learning cannot teach what a model never draws, so a model that knows only a part of its world
would measure that part. A stage of its own, as it goes on from a model that was already trained.

`noise` spoils captions, instructions and answers. Captions collected from the web are noisy, and a model that learned
from them draws well but follows prompts badly: reinforcement learning has to correct that in large models, and here.
Guidance hides a part of it. Without wrong answers the model is so sure of its mistakes that a group of answers has none
that differs, from which nothing can be learned.
"""

from pathlib import Path

import torch
from transformers import AutoProcessor

from rl.tiny.stages.learning import freeze_tokenizer, learn
from rl.tiny.stages.lesson import Lesson
from rl.tiny.stages.stage import Stage
from rl.tiny.stages.tokenizer import load_tokenizer
from uniar.modeling_uniar import UniARForConditionalGeneration

LESSONS = {
    "combinations": Lesson(
        drawings=6,
        edits=8,
        redrawings=3,
        questions=18,
        checks=6,
        descriptions=6,
        drawing_weight=1.5,
        split=None,
    ),
    "noise": Lesson(
        drawings=8,
        edits=8,
        redrawings=3,
        questions=20,
        checks=6,
        descriptions=8,
        drawing_weight=3.0,
        wrong_captions=0.7,
        wrong_instructions=0.4,
        wrong_answers=0.2,
        split=None,
    ),
}
STEPS = {"combinations": 2000, "noise": 500}
LEARNING_RATES = {"combinations": 1.0e-3, "noise": 6e-4}


def train_combinations(
    folder: Path, *, seed: int, steps: int = STEPS["combinations"], fast: bool = True
) -> dict[str, float]:
    """Trains the AR model of `folder` further; needs stage `policy`. Returns its losses as stage `policy` does."""
    return _train("combinations", folder, seed=seed, steps=steps, fast=fast)


def train_noise(folder: Path, *, seed: int, steps: int = STEPS["noise"], fast: bool = True) -> dict[str, float]:
    """As `train_combinations`; needs that stage."""
    return _train("noise", folder, seed=seed, steps=steps, fast=fast)


def _train(name: str, folder: Path, *, seed: int, steps: int, fast: bool) -> dict[str, float]:
    vision = load_tokenizer(folder)
    model = UniARForConditionalGeneration.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",  # as in stage `policy`
    ).train()
    freeze_tokenizer(model)
    stage = Stage(name, folder, model, steps=steps, learning_rate=LEARNING_RATES[name], weight_decay=0.1, seed=seed)
    return learn(stage, model, AutoProcessor.from_pretrained(folder), vision, LESSONS[name], seed=seed, fast=fast)
