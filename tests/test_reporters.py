"""Metrics and sample grids in TensorBoard and W&B, by the Trainer's `report_to`."""

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import run, small_recipe


@pytest.fixture
def settings(nano_checkpoint, tmp_path) -> dict:
    recipe = small_recipe(nano_checkpoint, tmp_path)
    recipe["evaluate"] |= {"prompts": recipe["data"]["prompts"], "at_start": True, "at_end": True}
    recipe["trainer"] |= {"max_steps": 2, "save_strategy": "no"}
    return recipe


def test_tensorboard_and_wandb_get_metrics_and_pictures(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    logs = tmp_path / "logs"
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(logs))
    run(settings, trainer={"report_to": ["tensorboard", "wandb"]})
    wandb.finish()  # else it ends with the tests' process, after its folder

    events = EventAccumulator(str(logs))
    events.Reload()
    scalars = events.Tags()["scalars"]
    for name in ("train/reward", "train/kl", "train/entropy", "train/seconds/rollout", "eval/reward", "eval/color"):
        assert name in scalars, name
    assert [event.step for event in events.Scalars("train/reward")] == [1, 2]
    assert [event.step for event in events.Scalars("eval/reward")] == [0, 2]
    pictures = events.Images("samples")
    assert [picture.step for picture in pictures] == [0, 2]
    assert pictures[0].encoded_image_string.startswith(b"\x89PNG")

    (offline,) = tmp_path.glob("wandb/offline-run-*")
    assert list(offline.glob("*.wandb"))
    assert len(list(offline.glob("files/media/images/samples_*.png"))) == 2
