"""Runs that go wrong stop, skip the update, or warn, as the recipe says; the bad batch is kept."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rl.recipe import recipe_from_mapping
from rl.run_folder import RunFolder
from rl.train import train
from rl.trainer import UniARTrainer
from uniar.errors import RunError


@pytest.fixture
def settings(nano_checkpoint: Path, tmp_path: Path) -> dict:
    lines = [json.dumps({"prompt": f"a {colour} square"}) for colour in ("red", "blue")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    return {
        "model": {"path": str(nano_checkpoint), "dtype": "float32"},
        "data": {"prompts": str(tmp_path / "prompts.jsonl")},
        "rollout": {"height": 64, "width": 64, "samples_per_prompt": 4},
        "decode": {"num_inference_steps": 1},
        "rewards": [{"use": "color", "color": "red", "softness": 0.6}],
        "trainer": {"max_steps": 3, "save_strategy": "no", "per_device_train_batch_size": 8, "learning_rate": 1e-3},
        "output_dir": str(tmp_path / "run"),
    }


def run(settings: dict, **watch) -> RunFolder:
    return train(recipe_from_mapping({**settings, "watch": watch}))


@pytest.fixture
def broken_second_update(monkeypatch):
    """The loss of the second update is NaN."""
    sound = UniARTrainer._replay

    def replay(self, model, batch):
        gaps = sound(self, model, batch)
        broken = self.state.global_step == 1 and gaps.cond.requires_grad
        return gaps._replace(cond=gaps.cond * float("nan")) if broken else gaps

    monkeypatch.setattr(UniARTrainer, "_replay", replay)


def test_a_loss_that_is_nan_stops_the_run(settings, broken_second_update):
    with pytest.raises(RunError, match="update 2: the loss is nan; its batch is in"):
        run(settings)
    (saved,) = Path(settings["output_dir"]).glob("bad_batches/*.safetensors")
    assert load_file(saved)["bits"].shape[0] == 8


def test_its_update_can_be_skipped(settings, broken_second_update, caplog):
    with caplog.at_level(logging.WARNING):
        folder = run(settings, nonfinite="skip")
    assert "update 2: a gradient is not finite" in caplog.text
    assert "skipped" in caplog.text
    weights = load_file(folder.final / "model.safetensors")
    assert all(bool(torch.isfinite(t).all()) for t in weights.values() if t.is_floating_point())
    assert len([line for line in folder.read() if "reward" in line]) == 3


def test_or_only_warned_of(settings, broken_second_update, caplog):
    with caplog.at_level(logging.WARNING):
        folder = run(settings, nonfinite="warn")
    assert "made all the same" in caplog.text
    assert bool(load_file(folder.final / "model.safetensors")["output_layer_vistok.1.weight"].isnan().any())


def test_rewards_that_never_differ(settings, tmp_path, caplog):
    (tmp_path / "flat.py").write_text("def flat(prompts, images, **_): return [1.0] * len(prompts)\n")
    settings["rewards"] = [{"use": f"{tmp_path}/flat.py:flat"}]
    with pytest.raises(RunError, match="no group's rewards have differed for 2 updates"):
        run(settings, no_variance_steps=2)
    settings["output_dir"] += "-warned"
    with caplog.at_level(logging.WARNING):
        run(settings, no_variance_steps=2, action="warn")
    assert "for 3 updates" in caplog.text


@pytest.mark.parametrize(
    ("limit", "words"),
    [({"kl_limit": 1e-9}, "kl is .* past watch.kl_limit"), ({"entropy_limit": 0.69}, "past watch.entropy_limit 0.69")],
)
def test_limits(settings, limit, words):
    with pytest.raises(RunError, match=words):
        run(settings, **limit)


def test_a_sound_run_is_left_alone(settings, caplog):
    with caplog.at_level(logging.WARNING):
        run(settings, no_variance_steps=1, kl_limit=10, entropy_limit=1e-6)
    assert "update" not in caplog.text
    assert not (Path(settings["output_dir"]) / "bad_batches").exists()
