"""`uniar-rl plan`: what it says, and the changes that it advises."""

import json

import pytest
from support.training_runs import changed, small_recipe

from rl.cli import main
from rl.config.recipe import load_recipe
from rl.plan.advice import advise
from rl.plan.estimate import GIB, RESERVE, make_plan
from rl.plan.planned_model import planned_model
from rl.plan.simulation import Simulation


@pytest.fixture
def settings(nano_checkpoint, tmp_path) -> dict:
    trainer = {"max_steps": 1, "per_device_train_batch_size": 4, "gradient_checkpointing": True}
    return changed(small_recipe(nano_checkpoint, tmp_path), decode={"num_inference_steps": 2}, trainer=trainer)


def test_the_command_says_whether_it_fits(settings, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(json.dumps(settings))
    command = ["plan", str(tmp_path / "recipe.yaml"), "--gpus", "2"]
    assert main([*command, "--memory", "3"]) == 0
    said = capsys.readouterr().out
    assert "on 2 GPUs of 3 GiB fits" in said
    assert "an update: 8 images, 3,072 bits (384 an image)" in said
    assert main([*command, "--memory", "0"]) == 2
    assert "--memory is 0.0" in capsys.readouterr().err


def test_advice_is_tried(settings, tmp_path, capsys):
    """Memory for all but the autoencoder's work on so many images: smaller batches of it are what helps."""
    settings = {**settings, "decode": {"batch_size": 64}, "trainer": {"per_device_train_batch_size": 64}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(settings))
    recipe = load_recipe(tmp_path / "recipe.yaml")
    simulation = Simulation(planned_model(recipe.model))

    def plan(overrides, gpus, memory):
        changed = load_recipe(tmp_path / "recipe.yaml", overrides)
        return changed, make_plan(changed, simulation, gpus, memory, 64)

    first = plan((), 1, 80 * GIB)[1]
    others = max(first.held(phase) for phase in ("rollout", "replay", "update", "step"))
    assert first.peak_phase == "decode"
    memory = RESERVE + int(((others + first.peak) / 2) / 0.95) + 1
    tight = plan((), 1, memory)[1]
    assert not tight.fits
    changes = advise(recipe, tight, lambda overrides, gpus: plan(overrides, gpus, memory))
    assert changes[0].overrides == ("decode.batch_size=16",)
    for change in changes:
        if change.overrides[0].startswith("--gpus"):
            continue
        assert plan(change.overrides, 1, memory)[1].fits
    assert main(["plan", str(tmp_path / "recipe.yaml"), "--memory", str(memory / GIB), "--prompt-tokens", "64"]) == 0
    said = capsys.readouterr().out
    assert "DOES NOT FIT" in said
    assert "  decode.batch_size=16\n" in said


def test_several_changes_where_one_is_not_enough(settings, tmp_path):
    """Less than the smallest single change reaches: a row of changes, each in its own words."""
    (tmp_path / "recipe.yaml").write_text(json.dumps({**settings, "decode": {"batch_size": 64}}))
    recipe = load_recipe(tmp_path / "recipe.yaml")
    simulation = Simulation(planned_model(recipe.model))
    memory = RESERVE + int(0.5 * make_plan(recipe, simulation, 1, GIB, 64).peak / 0.95)

    def planner(overrides, gpus):
        changed = load_recipe(tmp_path / "recipe.yaml", overrides)
        return changed, make_plan(changed, simulation, gpus, memory, 64)

    changes = advise(recipe, planner((), 1)[1], planner)
    assert len(changes) == 1
    assert len(changes[0].overrides) > 1
    assert changes[0].plan.fits
    assert planner(changes[0].overrides, 1)[1].peak == changes[0].plan.peak
    memory = RESERVE + 1000  # nothing fits into this
    assert advise(recipe, planner((), 1)[1], planner) == []
