"""The same numbers everywhere: two processes under DDP, ZeRO-2 and ZeRO-3 draw and learn what one does, and a run that
was resumed goes on as if it had not been stopped."""

import functools
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from support.training_runs import ROOT, changed, deepspeed, launch, logged, require_same, small_recipe, weights

from rl.checkpoint.folders import newest_good
from rl.config.recipe import recipe_from_mapping
from rl.records.rows import read_rows
from rl.run.folder import RunFolder
from rl.train import train

ENGINES = ("ddp", "zero2", "zero3")

# A reward that counts for nothing and writes down which bits it has seen.
DIGEST = """\
import hashlib, json, os
from pathlib import Path

def digest(prompts, images, bits, **_):
    with Path(__file__).with_name(f"seen-{os.getpid()}.jsonl").open("a") as file:
        for prompt, sample in zip(prompts, bits):
            file.write(json.dumps([prompt, hashlib.sha256(sample.numpy().tobytes()).hexdigest()]) + "\\n")
    return [0.0] * len(prompts)
"""

# What a variant changes in the recipe of one process, and of each of two.
VARIANTS = {
    "plain": ({}, {}),
    "lora": ({"model": {"lora": {"r": 4, "alpha": 8}}},) * 2,
    "iterations": ({"algorithm": {"num_iterations": 2}, "trainer": {"max_steps": 4, "save_steps": 2}},) * 2,
    "checkpointing": (
        {"trainer": {"gradient_checkpointing": True}},
        {"trainer": {"gradient_checkpointing": {"keep_layers": 2}}},
    ),
    "accumulation": ({}, {"trainer": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}}),
    "straddling": ({"rollout": {"samples_per_prompt": 8}},) * 2,
    "lora, iterations, accumulation, straddling": (
        {
            "model": {"lora": {"r": 4}},
            "algorithm": {"num_iterations": 2},
            "rollout": {"samples_per_prompt": 8},
            "trainer": {"max_steps": 4, "save_steps": 2},
        },
        {
            "model": {"lora": {"r": 4}},
            "algorithm": {"num_iterations": 2},
            "rollout": {"samples_per_prompt": 8},
            "trainer": {
                "max_steps": 4,
                "save_steps": 2,
                "per_device_train_batch_size": 1,
                "gradient_accumulation_steps": 4,
                "gradient_checkpointing": True,
            },
        },
    ),
}


@pytest.fixture(scope="module")
def settings(nano_checkpoint, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("prompts")
    recipe = small_recipe(nano_checkpoint, folder)
    held_out = {"prompts": recipe["data"]["prompts"], "guidance_scale": 2.0, "at_start": True}
    return changed(
        recipe,
        rollout={"guidance": "guided", "guidance_scale": 2.0},
        evaluate=held_out,
        trainer={"save_steps": 1, "lr_scheduler_type": "linear"},
    )


def recipe_in(folder: Path, settings: dict, *changes: dict) -> dict:
    """The recipe of a run in `folder`, with the reward that writes down its samples."""
    for change in changes:
        settings = changed(settings, **change)
    folder.mkdir(exist_ok=True)
    (folder / "digest.py").write_text(DIGEST)
    seen = {"use": f"{folder / 'digest.py'}:digest", "weight": 0}
    return {**settings, "rewards": [*settings["rewards"], seen], "output_dir": str(folder / "run")}


def engine_settings(engine: str | None) -> dict:
    """ZeRO-2 in the fewest words, which leave the rest to the recipe; the others by a file of configs/deepspeed."""
    if engine == "zero2":
        return {"deepspeed": {"zero_optimization": {"stage": 2}}}
    return {"deepspeed": None if engine in (None, "ddp") else deepspeed(engine)}


def metrics(folder: RunFolder) -> list[dict]:
    """All that was logged, but for what depends on the clock."""
    timed = ("seconds/", "eval_seconds", "train_", "step_time", "time", "throughput/images_per_second", "memory/")
    return [{key: value for key, value in line.items() if not key.startswith(timed)} for line in folder.read()]


def samples(folder: RunFolder) -> Counter:
    """Prompt and bits of all that was drawn, by all processes."""
    lines = [line for file in folder.path.parent.glob("seen-*.jsonl") for line in file.read_text().splitlines()]
    return Counter(lines)


@pytest.fixture(scope="module")
def one_process(settings, tmp_path_factory):
    """`one_process(variant)` is a run of one process, made once."""

    @functools.cache
    def run(variant: str) -> RunFolder:
        recipe = recipe_in(tmp_path_factory.mktemp("one"), settings, VARIANTS[variant][0])
        return train(recipe_from_mapping(recipe))

    return run


def recipe_of_two(settings: dict, folder: Path, engine: str, variant: str = "plain") -> dict:
    trainer = {"per_device_train_batch_size": 4, **engine_settings(engine)}
    return recipe_in(folder, settings, {"trainer": trainer}, VARIANTS[variant][1])


def require_same_samples(found: RunFolder, expected: RunFolder) -> None:
    """The same drawings, and so the same rewards; metrics and weights as close as sums in another order come."""
    require_same(found, expected, updates=3)
    for key in ("reward", "eval_reward"):
        assert logged(found, key) == pytest.approx(logged(expected, key), abs=1e-6), key
    assert logged(found, "eval_reward")[0] == logged(expected, "eval_reward")[0]
    groups, others = (read_rows(run.groups / "step-000001.parquet") for run in (found, expected))
    assert groups.select(["id", "sample", "seed"]) == others.select(["id", "sample", "seed"])
    assert samples(found) == samples(expected)
    assert len(samples(found)) > 20


# The matrix ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zero2(settings, tmp_path_factory) -> RunFolder:
    recipe = recipe_of_two(settings, tmp_path_factory.mktemp("zero2"), "zero2")
    folder, said = launch(recipe, 2)
    assert "\nheld-out reward: " in said
    return folder


@pytest.fixture(scope="module")
def zero3(settings, tmp_path_factory) -> RunFolder:
    """Its phases and what they gathered are in gathers-<rank>.jsonl beside it."""
    folder = tmp_path_factory.mktemp("zero3")
    recipe, counted = recipe_of_two(settings, folder, "zero3"), [str(ROOT / "tests" / "support" / "counted_run.py")]
    return launch(recipe, 2, program=counted, variables={"GATHERS": str(folder / "gathers")})[0]


def test_zero2_is_one_process(zero2, one_process):
    require_same_samples(zero2, one_process("plain"))


def test_zero3_is_one_process(zero3, one_process):
    require_same_samples(zero3, one_process("plain"))


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("engine", ENGINES)
def test_matrix(settings, one_process, tmp_path, engine, variant):
    found, _ = launch(recipe_of_two(settings, tmp_path, engine, variant), 2)
    require_same_samples(found, one_process(variant))


def test_zero3_gathers_once_a_rollout_and_never_the_decoder(zero3, nano_model):
    policy = sum(parameter.numel() for parameter in nano_model.parameters())
    for rank in range(2):
        file = zero3.path.parent / f"gathers-{rank}.jsonl"
        phases = [json.loads(line) for line in file.read_text().splitlines()]
        rollouts = [phase for phase in phases if phase["phase"] == "rollout"]
        assert len(rollouts) == 3
        # Once the weights and what pads them; small ones stay whole on every rank.
        assert all(0.5 * policy < rollout["numbers"] < 1.05 * policy for rollout in rollouts)
        assert all(phase["numbers"] == 0 for phase in phases if phase["phase"] in ("decode", "reward"))
        assert not any(phase["decoder_is_sharded"] for phase in phases)


# Resuming ------------------------------------------------------------------------------------------------------------


def stopped_after(run: RunFolder, step: int, folder: Path) -> RunFolder:
    """A copy of a run as it was after an update, with the metrics that a killed one may have written on top."""
    copy = folder / "run"
    shutil.copytree(run.path, copy)
    shutil.rmtree(copy / "final")
    for checkpoint in copy.glob("checkpoint-*"):
        if int(checkpoint.name.removeprefix("checkpoint-")) > step:
            shutil.rmtree(checkpoint)
    return RunFolder(copy)


@pytest.mark.parametrize("engine", ["zero2", "zero3", pytest.param("ddp", marks=pytest.mark.slow)])
def test_resumed_run_is_the_uninterrupted_one(settings, tmp_path, request, engine):
    if engine == "ddp":
        whole, _ = launch(recipe_of_two(settings, tmp_path / "whole", engine), 2)
    else:
        whole = request.getfixturevalue(engine)
    recipe = recipe_of_two(settings, tmp_path / "resumed", engine)
    resumed = stopped_after(whole, 1, tmp_path / "resumed")
    launch(recipe, 2, "--resume")
    assert metrics(resumed) == metrics(whole)
    expected, found = weights(whole.final), weights(resumed.final)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_one_process_goes_on_with_the_weights_of_two(settings, tmp_path, request, capsys, engine):
    whole = request.getfixturevalue(engine)
    recipe = recipe_in(tmp_path / "resumed", settings)
    resumed = stopped_after(whole, 2, tmp_path / "resumed")
    assert train(recipe_from_mapping(recipe), resume=True) is not None
    said = capsys.readouterr().out
    assert f"was written by 2 processes under ZeRO-{engine[-1]}, and this is 1 process: ONLY ITS WEIGHTS" in said
    assert [line["step"] for line in metrics(resumed) if "reward" in line] == [1, 2, 3]
    # The weights, the prompts and their noise, the learning rate are those that would have been; the moments are not.
    for key in ("reward", "kl", "entropy", "learning_rate"):
        assert logged(resumed, key) == pytest.approx(logged(whole, key), rel=1e-4, abs=1e-7), key
    assert newest_good(resumed.path).name == "checkpoint-3"


@pytest.mark.slow
@pytest.mark.parametrize("model", [{}, {"lora": {"r": 4}}], ids=["full", "lora"])
@pytest.mark.parametrize(("before", "after"), [("zero3", "zero2"), (None, "ddp"), (None, "zero3"), ("zero2", None)])
def test_another_engine_goes_on_with_the_weights(settings, tmp_path, before, after, model):
    changes = {"model": model}
    run = RunFolder(tmp_path / "run")

    def go_on(engine: str | None, steps: int) -> str:
        trainer = {"max_steps": steps, "lr_scheduler_type": "constant", **engine_settings(engine)}
        size = {"per_device_train_batch_size": 4 if engine else 8}
        recipe = recipe_in(tmp_path, settings, changes, {"trainer": {**trainer, **size}})
        if engine is not None:
            return launch({**recipe, "resume": "auto"}, 2)[1]
        train(recipe_from_mapping({**recipe, "resume": "auto"}))
        return ""

    go_on(before, 2)
    said = go_on(after, 4)
    if after is not None:
        assert ("ONLY ITS WEIGHTS" in said) == (after != "ddp")
    straight = recipe_in(
        tmp_path / "straight", settings, changes, {"trainer": {"max_steps": 4, "lr_scheduler_type": "constant"}}
    )
    whole = train(recipe_from_mapping(straight))
    assert [line["step"] for line in metrics(run) if "reward" in line] == [1, 2, 3, 4]
    for key in ("reward", "kl"):
        assert logged(run, key)[:3] == pytest.approx(logged(whole, key)[:3], rel=1e-4, abs=1e-7), key
