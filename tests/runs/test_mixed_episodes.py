"""Prompts that are drawn, edited, answered, thought about and drawn again train together: the same on one process and
on two under each engine, however an update is split, and after a resume."""

import functools
import json
import shutil
from pathlib import Path

import pytest
import torch
from support.mixed_episodes import mixed_recipe, seen
from support.training_runs import changed, deepspeed, launch, logged, require_same, weights

from rl.config.recipe import recipe_from_mapping
from rl.run.folder import RunFolder
from rl.train import train
from uniar.errors import UserError

KEYS = ("reward", "loss", "kl", "entropy", "grad_norm", "text/kl", "text/entropy", "text/policy_loss")
ENGINES = {"ddp": None, "zero2": {"zero_optimization": {"stage": 2}}, "zero3": deepspeed("zero3")}


@pytest.fixture(scope="module")
def one_process(nano_checkpoint, tmp_path_factory):
    """`one_process(lora)` is a run of one process, made once."""

    @functools.cache
    def run(lora: bool) -> RunFolder:
        recipe = mixed_recipe(nano_checkpoint, tmp_path_factory.mktemp("one"))
        return train(recipe_from_mapping(changed(recipe, model=lora_of(lora))))

    return run


def lora_of(lora: bool) -> dict:
    return {"lora": {"r": 4, "alpha": 8}} if lora else {}


def require_one(found: RunFolder, expected: RunFolder) -> None:
    require_same(found, expected, updates=3)
    for key in KEYS:
        assert logged(found, key) == pytest.approx(logged(expected, key), rel=2e-4, abs=1e-7), key
    assert seen(found.path.parent) == seen(expected.path.parent)


def test_every_kind_of_turn_is_trained(one_process, nano_checkpoint):
    run = one_process(False)
    assert max(logged(run, "rollout/text_logp_difference")) < 1e-4
    assert max(logged(run, "rollout/logp_difference")) < 1e-4
    made = seen(run.path.parent)
    rows = [json.loads(line) for line in made]
    assert {(drawn is None, len(said)) for _, drawn, said in rows} == {(False, 0), (True, 1), (False, 1)}
    assert any(said and said[0] for _, _, said in rows)
    before, after = weights(nano_checkpoint), weights(run.final)
    for name in ("lm_head.weight", "model.language_model.norm.weight", "output_layer_vistok.1.weight"):
        assert not torch.equal(before[name].float(), after[name].float()), name
    assert logged(run, "throughput/text_tokens")[0] > 0


@pytest.mark.parametrize(
    ("engine", "lora"),
    [
        ("ddp", False),
        ("zero3", False),
        pytest.param("zero2", False, marks=pytest.mark.slow),
        *[pytest.param(engine, True, marks=pytest.mark.slow) for engine in ENGINES],
    ],
)
def test_two_processes_are_one(nano_checkpoint, one_process, tmp_path, engine, lora):
    """Micro-batches have some kinds of turns and not others."""
    trainer = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "deepspeed": ENGINES[engine]}
    recipe = mixed_recipe(nano_checkpoint, tmp_path, trainer=trainer, model={**lora_of(lora)})
    recipe = changed(recipe, model={"path": str(nano_checkpoint), "dtype": "float32", **lora_of(lora)})
    found, _ = launch(recipe, 2)
    require_one(found, one_process(lora))


def test_an_update_is_the_same_however_it_is_split(nano_checkpoint, one_process, tmp_path):
    trainer = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    found = train(recipe_from_mapping(mixed_recipe(nano_checkpoint, tmp_path, trainer=trainer)))
    require_one(found, one_process(False))


def test_a_resumed_run_is_the_uninterrupted_one(nano_checkpoint, one_process, tmp_path):
    whole = one_process(False)
    recipe = mixed_recipe(nano_checkpoint, tmp_path)
    shutil.copytree(whole.path, tmp_path / "run")
    for later in ("checkpoint-2", "checkpoint-3", "final"):
        shutil.rmtree(tmp_path / "run" / later)
    resumed = train(recipe_from_mapping(recipe), resume=True)
    for key in KEYS:
        assert logged(resumed, key) == logged(whole, key), key
    expected, found = weights(whole.final), weights(resumed.final)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_several_updates_a_rollout(nano_checkpoint, tmp_path):
    recipe = mixed_recipe(
        nano_checkpoint,
        tmp_path,
        algorithm={"num_iterations": 2},
        trainer={"max_steps": 4, "save_strategy": "no", "per_device_train_batch_size": 4, "steps_per_generation": 2},
    )
    recipe["trainer"]["gradient_accumulation_steps"] = 2
    run = train(recipe_from_mapping(recipe))
    moved = logged(run, "text/approx_kl")
    assert moved[0] == pytest.approx(0, abs=1e-9)
    assert moved[1] > 0


def test_dynamic_sampling_moves_whole_trajectories(nano_checkpoint, tmp_path):
    """Groups whose rewards hardly differ give way to others, whose samples change processes: the same as on one."""
    runs = []
    for processes in (1, 2):
        trainer = {"per_device_train_batch_size": 16 // processes, "save_strategy": "no", "max_steps": 2}
        recipe = mixed_recipe(nano_checkpoint, tmp_path / str(processes), trainer=trainer)
        recipe["rollout"]["dynamic_sampling"] = {"max_rounds": 2, "min_std": 0.08}
        runs.append(launch(recipe, 2)[0] if processes == 2 else train(recipe_from_mapping(recipe)))
    assert logged(runs[0], "dynamic_sampling/refilled")[0] >= 1
    for key in (*KEYS, "dynamic_sampling/dropped", "dynamic_sampling/refilled"):
        assert logged(runs[1], key) == pytest.approx(logged(runs[0], key), rel=2e-4, abs=1e-7), key


def test_answers_alone_train_no_part_that_draws(nano_checkpoint, tmp_path):
    recipe = mixed_recipe(nano_checkpoint, tmp_path, trainer={"max_steps": 2, "per_device_train_batch_size": 4})
    lines = [json.loads(line) for line in Path(recipe["data"]["prompts"]).read_text().splitlines()]
    asked = [line for line in lines if line["task"] == "vqa"]
    Path(recipe["data"]["prompts"]).write_text("".join(json.dumps(line) + "\n" for line in asked))
    recipe["rollout"]["episodes"] = {"default": "answer"}
    recipe["rewards"] = [{**reward, "tasks": ["vqa"]} for reward in recipe["rewards"][1:]]
    run, _ = launch(recipe, 2)
    before, after = weights(nano_checkpoint), weights(run.final)
    changed_names = {name for name in before if not torch.equal(before[name].float(), after[name].float())}
    assert "lm_head.weight" in changed_names
    assert not any(name.startswith(("visual_decoder", "output_layer_vistok", "model.visual")) for name in changed_names)
    assert "kl" not in run.read()[0]


def test_limits_and_targets_of_bits_are_not_held_against_texts(nano_checkpoint, tmp_path):
    """Each rollout is one group; after the first update, texts are further from the reference than the limit."""
    recipe = mixed_recipe(
        nano_checkpoint,
        tmp_path,
        algorithm={"beta": 0.01, "kl_control": {"target": 1e-3}},
        watch={"kl_limit": 0.05, "action": "stop"},
        trainer={"per_device_train_batch_size": 4, "max_steps": 6, "save_strategy": "no"},
    )
    lines = [line for line in train(recipe_from_mapping(recipe)).read() if "loss" in line]
    textual = [number for number, line in enumerate(lines) if number and "kl" not in line]
    assert any(lines[number]["text/kl"] > 0.05 for number in textual)
    steered = [lines[number + 1]["beta"] == lines[number]["beta"] for number in textual if number + 1 < len(lines)]
    assert steered
    assert all(steered)


@pytest.mark.parametrize(("task", "said"), [("vqaa", "Did you mean 'vqa'"), ("defualt", "Did you mean 'default'")])
def test_a_task_that_no_prompt_has_is_said(nano_checkpoint, tmp_path, task, said):
    recipe = mixed_recipe(nano_checkpoint, tmp_path)
    recipe["rollout"]["episodes"][task] = "answer"
    with pytest.raises(UserError, match=rf"rollout.episodes.{task}: no prompt has the task '{task}'.*{said}"):
        train(recipe_from_mapping(recipe))
