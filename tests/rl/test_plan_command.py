"""`uniar-rl plan`: what it says, and what it says of a recipe that does not fit."""

import json

import pytest
from support.training_runs import changed, small_recipe

from rl.cli import main
from rl.commands.plan import LEVERS
from rl.config.recipe import load_recipe
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
    assert "an update: 8 images, 3,072 bits (384 per image)" in said
    assert main([*command, "--memory", "0"]) == 2
    assert "--memory is 0.0" in capsys.readouterr().err


def test_a_recipe_that_does_not_fit_is_told_what_lowers_the_peak(settings, tmp_path, capsys):
    """Each change that is named is a valid override, and those that this recipe can take lower its peak."""
    settings = {**settings, "decode": {"batch_size": 64}, "trainer": {"per_device_train_batch_size": 64}}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(settings))
    assert main(["plan", str(path), "--memory", f"{RESERVE / GIB + 0.03}", "--prompt-tokens", "64"]) == 0
    said = capsys.readouterr().out
    assert "DOES NOT FIT" in said
    simulation = Simulation(planned_model(load_recipe(path).model))

    def peak(*overrides):
        return make_plan(load_recipe(path, overrides), simulation, 2, GIB, 64).peak

    for change, _ in LEVERS:
        assert f"  {change} " in said
        if not change.startswith("rewards.0."):  # this recipe's reward has no weights
            assert peak(change.replace("=N", "=8")) <= peak()
    assert peak("decode.batch_size=1") < peak()


@pytest.mark.parametrize("memory", ["nan", "-5", "inf", "80"])
def test_memory_for_rewards_is_some_of_the_gpu(memory, capsys):
    assert main(["plan", "configs/nano.yaml", f"--reward-memory={memory}"]) == 2
    assert "--reward-memory is " in capsys.readouterr().err
