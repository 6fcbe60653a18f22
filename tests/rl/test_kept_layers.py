"""Gradient checkpointing of only as many layers as memory asks for."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
import yaml
from support.planned_recipes import plan_of, planned_settings, recipe_of, simulation_of
from support.training_runs import changed, run, small_recipe
from transformers import AutoTokenizer
from transformers.integrations.deepspeed import (
    HfDeepSpeedConfig,
    is_deepspeed_zero3_enabled,
    unset_hf_deepspeed_config,
)

from rl.checkpoint.tensor_files import TensorFiles
from rl.cli import main
from rl.commands.plan import describe
from rl.data.prompts import PromptRecord
from rl.plan import own_run
from rl.plan.estimate import GIB, RESERVE, RESERVED_SHARE, Plan, make_plan
from rl.plan.planned_model import planned_model
from rl.plan.simulation import Simulation
from rl.plan.summary import summary

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


@pytest.mark.parametrize("sizes", [[1, 2], [1, 1, 9, 10, 11, 30], [1, 8, 8, 9, 9, 9]])
def test_auto_searches_layers_that_hold_unequally(settings, sizes):
    """The sizes of an update's activations, in GiB, by how many layers are kept; the first is of a model of one."""

    class Uneven(Simulation):
        def layers(self, recipe):
            return len(sizes) - 1

        def update(self, recipe, *_):
            return sizes[self.kept_layers(recipe)] * GIB

    recipe = recipe_of(settings, trainer=AUTO)
    simulation = Uneven(planned_model(recipe.model))
    for gib in range(2, 36):
        plan = make_plan(recipe, simulation, 1, RESERVE + gib * GIB, 64)
        beside = plan.held("update") - plan.part("activations")
        assert plan.kept_layers == max(kept for kept, size in enumerate(sizes) if beside + size * GIB <= plan.usable)


PLUGIN = """
def drawn(record):
    yield None
drawn.turns = ("picture",)
"""


def test_auto_keeps_none_with_inputs_that_are_guessed(settings, tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    (tmp_path / "questions.jsonl").write_text('{"question": "what?", "answer": "a circle"}\n')
    questions = {"kl_questions": str(tmp_path / "questions.jsonl")}
    episode = {"episodes": {"draws": f"{tmp_path}/mine.py:drawn"}}
    assert auto(settings, 2**40, understanding={**questions, "kl_beta": 0.0}).kept_layers > 0
    asked, played = (
        auto(settings, 2**40, understanding={**questions, "kl_beta": 0.1}),
        auto(settings, 2**40, rollout=episode),
    )
    for plan, because in ((asked, "kl_questions"), (played, "episodes other than draw")):
        assert plan.kept_layers == 0
        assert because in plan.kept
        assert f"activations: {plan.kept}" in describe(plan, "recipe", 80)


def test_layers_in_words(settings):
    layers = simulation_layers(settings)
    assert [keeping(settings, kept).kept for kept in (0, 1, layers)] == [
        f"kept in none of {layers} layers",
        f"kept in 1 of {layers} layers, computed again in the others",
        f"kept in all {layers} layers",
    ]


@pytest.fixture
def own(settings, nano_checkpoint):
    """The plan of a run on these prompts, and the line of its head."""
    tokenizer, recipe = AutoTokenizer.from_pretrained(nano_checkpoint), recipe_of(settings, trainer=AUTO)

    def plan(*records, memory=80 * GIB, deepspeed=None):
        args = SimpleNamespace(
            **({} if deepspeed is None else {"hf_deepspeed_config": deepspeed})
        )  # as transformers has it
        made = own_run.own_plan(recipe, nano_checkpoint, 1, records, tokenizer, memory, args)
        return made, " ".join(summary(recipe, made, 1).values())

    return plan


def test_a_run_plans_for_its_longest_prompt(own, nano_checkpoint):
    short, long = PromptRecord("a red circle"), PromptRecord("a red circle " * 400)
    assert own(short, long)[0].part("activations") > 3 * own(short)[0].part("activations")
    more_tokens, more_characters = PromptRecord("\u4e00\u4e8c\u4e09" * 120), PromptRecord("circle " * 60)
    tokenizer = AutoTokenizer.from_pretrained(nano_checkpoint)
    assert len(more_tokens.prompt) < len(more_characters.prompt)
    assert own_run.prefix_of([more_tokens], tokenizer) > own_run.prefix_of([more_characters], tokenizer)
    many = [more_tokens, *(PromptRecord(f"{more_characters.prompt}{number}") for number in range(2000))]
    assert own_run.prefix_of(many, tokenizer) == own_run.prefix_of([more_tokens], tokenizer)


def test_a_run_without_deepspeed_says_what_memory_it_takes(nano_checkpoint, tmp_path, capsys, caplog):
    settings = changed(small_recipe(nano_checkpoint, tmp_path), trainer={"max_steps": 1, "save_strategy": "no"})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 0
    assert "GiB per process at its peak" in capsys.readouterr().out
    assert own_run.UNKNOWN not in caplog.text


def test_the_head_says_how_many_are_kept_and_why_none(own, caplog):
    record = PromptRecord("a red circle")
    plan, head = own(record)
    assert plan.kept_layers == plan.layers
    assert f"activations kept in all {plan.layers} layers" in head
    for records, memory, because in (
        ([record, dataclasses.replace(record, image="picture.png")], 80 * GIB, "pictures of prompts"),
        ([record, dataclasses.replace(record, size=(64, 128))], 80 * GIB, "prompts name sizes"),
        ([record], GIB, "no memory is left"),
        ([record], 0, "what this device has free is not known"),
    ):
        plan, head = own(*records, memory=memory)
        assert plan.kept_layers == 0
        assert f"activations kept in none of {plan.layers} layers ({because}" in head
    plan, head = own()  # no prompt, which no run has
    assert plan is None
    assert f"kept in no layer ({own_run.UNKNOWN})" in head


def test_the_process_of_least_memory_decides(own, monkeypatch):
    record = PromptRecord("a red circle")
    monkeypatch.setattr(own_run, "gather_object", lambda mine: [*mine, 3 * GIB, 90 * GIB])
    assert own(record)[0].memory == 3 * GIB


def test_a_plan_is_made_of_whole_weights_under_zero_3(own):
    record = PromptRecord("a red circle")
    expected = own(record)[0]
    stage3 = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    try:
        assert own(record, deepspeed=stage3)[0].parts == expected.parts
        assert is_deepspeed_zero3_enabled()
    finally:
        unset_hf_deepspeed_config()


def test_memory_is_what_is_free_or_its_own(monkeypatch):
    assert own_run.memory_here() == own_run.ENDLESS  # a CPU
    for device, expected in (("xpu:0", 0), ("cuda:1", 53 * GIB + own_run.CONTEXT)):
        monkeypatch.setattr(own_run, "local_device", lambda device=device: torch.device(device))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (50 * GIB, 80 * GIB))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 3 * GIB)
        assert own_run.memory_here() == expected


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
