"""The training step, as it is read: few frames from the trainer to a reward."""

import json
from collections import Counter

import torch
from support.training_runs import changed, run, small_recipe

from uniar.modeling_uniar import UniARForConditionalGeneration

REWARD = """
import json, traceback
from pathlib import Path
from rewards import Reward

class Frames(Reward):
    overlaps_decoding = False  # scored on the thread that draws

    def score(self, batch):
        frames = [f"{Path(frame.filename).name}:{frame.name}" for frame in traceback.extract_stack()]
        Path(__file__).with_name(f"{type(self).__name__}.json").write_text(json.dumps(frames))
        return [0.0] * len(batch)

class Compares(Frames):
    pointwise = False
"""


def test_a_reward_is_at_most_five_frames_below_the_trainer(nano_checkpoint, tmp_path):
    (tmp_path / "frames.py").write_text(REWARD)
    settings = changed(small_recipe(nano_checkpoint, tmp_path), trainer={"max_steps": 1, "save_strategy": "no"})
    names = ("Frames", "Compares")
    run({**settings, "rewards": [{"use": f"{tmp_path / 'frames.py'}:{name}"} for name in names]})
    for name in names:
        frames = json.loads((tmp_path / f"{name}.json").read_text())
        trainer, score = frames.index("trainer.py:_generate_and_score_completions"), frames.index("frames.py:score")
        assert frames[trainer + 1] == "step.py:collect"
        assert score - trainer <= 5, frames[trainer : score + 1]


def test_samples_of_a_prompt_share_it_in_every_pass(nano_checkpoint, tmp_path, monkeypatch):
    """Two micro-batches of four, of prompts that have four samples each: TRL shuffles them first."""
    packed, own = [], UniARForConditionalGeneration.shared_prefixes

    def shared_prefixes(*given):
        found = own(*given)
        packed.append(None if found is None else (tuple(found.slots.shape), torch.is_grad_enabled()))
        return found

    monkeypatch.setattr(UniARForConditionalGeneration, "shared_prefixes", shared_prefixes)
    settings = changed(
        small_recipe(nano_checkpoint, tmp_path),
        rollout={"samples_per_prompt": 4, "guidance": "none", "guidance_scale": 1.0},
        algorithm={"beta": 0.1},
        trainer={
            "max_steps": 2,
            "save_strategy": "no",
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
        },
    )
    run({**settings, "rewards": ["color"]})
    assert Counter(packed) == {((1, 4), True): 4, ((1, 4), False): 4}  # of the update, and of the reference
