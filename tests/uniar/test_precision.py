"""Half precision: what the optimizer updates, and what stands in for the old policy where rollout and update drift."""

import pytest
import torch
from safetensors.torch import load_file
from support.training_runs import changed, deepspeed, launch, logged, run, small_recipe

from rl.checkpoint.zero_shards import ZeroShards


@pytest.fixture
def settings(nano_checkpoint, tmp_path) -> dict:
    rollout = {"guidance": "guided", "guidance_scale": 2.0}
    return changed(small_recipe(nano_checkpoint, tmp_path), model={"dtype": "bfloat16"}, rollout=rollout)


def test_truncated_importance_weights_with_one_update_a_rollout(settings, tmp_path, monkeypatch):
    # Small as the model is, it rounds alike in rollout and replay where prefixes are 32 positions wide.
    monkeypatch.setattr("uniar.conversations.prefix_multiple", lambda model: 1)
    ratios = {}
    for name, algorithm in {
        "replay": {"old_logp": "replay"},
        "rollout": {"old_logp": "rollout"},
        "truncated": {"old_logp": "rollout", "importance_cap": 1.0},
    }.items():
        folder = run(settings, algorithm=algorithm, trainer={"max_steps": 1}, output_dir=str(tmp_path / name))
        (drift,) = logged(folder, "rollout/logp_difference")
        ratios[name] = logged(folder, "ratio/max")[0]
        assert drift > 1e-5
    # Replayed, the old policy is the policy itself. The rollout's own shows what was lost in between, up to the cap.
    assert ratios["replay"] == 1
    assert ratios["rollout"] > 1 + 1e-3
    assert ratios["truncated"] == 1


@pytest.mark.slow
def test_zero_keeps_float32_weights_beside_bfloat16_ones(settings, nano_checkpoint):
    """Updates too small for bfloat16 add up all the same."""
    trainer = {"learning_rate": 1e-6, "deepspeed": deepspeed("zero2"), "save_steps": 3}
    folder, _ = launch(settings, 1, trainer=trainer)
    checkpoint = folder.path / "checkpoint-3"
    before, after = load_file(nano_checkpoint / "model.safetensors"), load_file(checkpoint / "model.safetensors")
    shards = ZeroShards(checkpoint)
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    moved = (shards[name].float() - before[name].to(torch.bfloat16).float()).abs()
    assert moved.median() > 1e-6  # Adam moves a weight by about the learning rate each time
    unchanged = (after[name] == before[name].to(torch.bfloat16)).float().mean()
    assert unchanged > 0.9
