"""Stage `policy`: supervised training of the AR model on drawing, editing and answering together.

Few drawings, as the rest of that is left to the two stages after it and to reinforcement learning.
"""

from pathlib import Path

import torch
from transformers import AutoProcessor

from rl.tiny.stages.learning import freeze_tokenizer, learn
from rl.tiny.stages.lesson import Lesson
from rl.tiny.stages.model import new_policy
from rl.tiny.stages.stage import Stage
from rl.tiny.stages.tokenizer import load_tokenizer

STEPS = 5500
LESSON = Lesson(drawings=2, edits=16, questions=40, descriptions=20, drawing_weight=0.7)


def train_policy(folder: Path, *, seed: int, steps: int = STEPS, fast: bool = True) -> dict[str, float]:
    """Trains the AR model into `folder`; needs stage `tokenizer`. Returns its held-out losses."""
    torch.manual_seed(seed)
    vision = load_tokenizer(folder)
    model = new_policy(folder, seed)
    model.model.visual.load_state_dict(vision.state_dict())
    freeze_tokenizer(model)
    model.set_attn_implementation("eager")  # the backward of torch's fused attention takes half a step on a CPU
    stage = Stage("policy", folder, model, steps=steps, learning_rate=1.5e-3, weight_decay=0.1, seed=seed)
    return learn(stage, model, AutoProcessor.from_pretrained(folder), vision, LESSON, seed=seed, fast=fast)
