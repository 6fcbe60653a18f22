"""Stage `captions`: the AR model trains on, with captions of which 70% describe another picture.

Captions collected from the web are noisy, and a model that learned from them draws well but follows prompts badly:
reinforcement learning has to correct that in large models, and here. Guidance hides a part of it.
"""

from pathlib import Path

import torch
from transformers import AutoProcessor

from rl.tiny.lessons import Lesson, freeze_tokenizer, learn
from rl.tiny.train_tokenizer import load_tokenizer
from rl.tiny.training import Stage
from uniar.modeling_uniar import UniARForConditionalGeneration

STEPS = 500
LESSON = Lesson(drawings=8, edits=8, questions=20, descriptions=10, drawing_weight=3.0, wrong_captions=0.7)


def train_captions(folder: Path, *, seed: int, steps: int = STEPS, fast: bool = True) -> dict[str, float]:
    """Trains the AR model of `folder` further; needs stage `policy`. Returns held-out losses, with right captions."""
    vision = load_tokenizer(folder)
    model = UniARForConditionalGeneration.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",  # as in stage `policy`
    ).train()
    freeze_tokenizer(model)
    stage = Stage("captions", folder, model, steps=steps, learning_rate=6e-4, weight_decay=0.1, seed=seed)
    return learn(stage, model, AutoProcessor.from_pretrained(folder), vision, LESSON, seed=seed, fast=fast)
