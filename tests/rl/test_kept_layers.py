"""Gradient checkpointing of only as many layers as memory asks for."""

import dataclasses

import pytest
import torch
import yaml
from support.planned_recipes import plan_of, planned_settings, recipe_of, simulation_of
from support.training_runs import run, small_recipe
from transformers import AutoTokenizer

from rl.checkpoint.tensor_files import TensorFiles
from rl.data.prompts import PromptRecord
from rl.plan import own_run
from rl.plan.estimate import RESERVE, RESERVED_SHARE, Plan

AUTO = {"gradient_checkpointing": "auto"}


@pytest.fixture
def settings(nano_checkpoint, tmp_path) -> dict:
    return planned_settings(nano_checkpoint, tmp_path)


def keeping(settings, layers: int) -> Plan:
    return plan_of(recipe_of(settings, trainer={"gradient_checkpointing": {"keep_layers": layers}}))


def auto(settings, bytes_to_use: int, **sections) -> Plan:
    memory = RESERVE + int(bytes_to_use / (1 - RESERVED_SHARE)) + 1
    return plan_of(recipe_of(settings, **{"trainer": AUTO, **sections}), memory=memory)


def test_auto_keeps_as_many_as_fit(settings):
    settings["trainer"]["per_device_train_batch_size"] = 16  # so that the peak is the update's
    layers = simulation_layers(settings)
    peaks = [keeping(settings, kept).peak for kept in range(layers + 1)]
    assert peaks == sorted(peaks)
    assert peaks[-1] > peaks[0]
    for peak in peaks:
        plan = auto(settings, peak)
        assert plan.fits
        assert plan.peak == peaks[plan.kept_layers]
        assert all(more > plan.usable for more in peaks[plan.kept_layers + 1 :])
    nothing_fits = auto(settings, peaks[0] - 2**10)
    assert (nothing_fits.fits, nothing_fits.kept_layers) == (False, 0)


def simulation_layers(settings) -> int:
    recipe = recipe_of(settings)
    return simulation_of(recipe.model).layers(recipe)


def test_keys_and_layers(settings):
    layers = simulation_layers(settings)
    for value, kept in (
        (True, 0),
        (False, layers),
        ("auto", layers),
        ({"keep_layers": 1}, 1),
        ({"keep_layers": 99}, layers),
    ):
        for name in ("gradient_checkpointing", "activation_checkpointing"):
            assert plan_of(recipe_of(settings, trainer={name: value})).kept_layers == kept
    assert plan_of(recipe_of(settings)).kept_layers == 0


def test_auto_keeps_none_where_sizes_are_not_known(settings, tmp_path):
    (tmp_path / "mine.py").write_text("def mine(prompts, images, **_):\n    return [0.0] * len(images)\n")
    writes = {"rollout": {"episodes": {"default": "answer"}}}
    assert auto(settings, 2**40).kept_layers > 0
    assert auto(settings, 2**40, **writes).kept_layers == 0
    settings["rewards"] = [{"use": "geneval", "detector": str(tmp_path / "none")}]
    unknown = auto(settings, 2**40)
    assert unknown.not_counted
    assert unknown.kept_layers == 0


def test_a_run_plans_for_its_longest_prompt(settings, nano_checkpoint, monkeypatch):
    tokenizer, recipe = AutoTokenizer.from_pretrained(nano_checkpoint), recipe_of(settings, trainer=AUTO)
    card = type("Card", (), {"total_memory": 80 * 2**30, "name": "a GPU"})
    monkeypatch.setattr(own_run, "gpu_here", lambda: card)

    def plan(*records):
        return own_run.own_plan(recipe, nano_checkpoint, 1, records, tokenizer)

    short, long = PromptRecord("a red circle"), PromptRecord("a red circle " * 400)
    assert plan(short, long).part("activations") > 3 * plan(short).part("activations")
    assert plan(short).kept_layers > 0
    assert plan(short, dataclasses.replace(short, image="picture.png")).kept_layers == 0


def test_runs_that_keep_more_or_less_train_the_same(nano_checkpoint, tmp_path):
    settings, found = small_recipe(nano_checkpoint, tmp_path), []
    settings["trainer"] |= {"max_steps": 1, "save_strategy": "no"}
    for number, value in enumerate((True, {"keep_layers": 2}, "auto")):
        folder = run(settings, trainer={"gradient_checkpointing": value}, output_dir=str(tmp_path / f"run-{number}"))
        assert yaml.safe_load(folder.config.read_text())["trainer"]["gradient_checkpointing"] == value
        stored = TensorFiles(folder.final)
        found.append({name: stored[name] for name in stored.stored})
    for weights in found[1:]:
        assert all(torch.equal(weights[name], weight) for name, weight in found[0].items())
