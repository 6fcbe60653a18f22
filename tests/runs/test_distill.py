"""Distillation, whole runs: a student that is trained on its own samples, each towards the expert of its prompt."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.mixed_episodes import mixed_recipe
from support.training_runs import changed, deepspeed, launch, logged, run, small_recipe, weights

from rl.cli import main
from uniar.presets.build import PRESETS, build_preset

TASKS = {"red": "warm", "yellow": "warm", "blue": "cold", "green": "cold"}


@pytest.fixture(scope="module")
def expert(nano_checkpoint, tmp_path_factory) -> Path:
    """The small model with other weights, but for those that say what a bit means."""
    folder = tmp_path_factory.mktemp("experts") / "expert"
    folder.mkdir()
    for entry in nano_checkpoint.iterdir():
        if entry.name != "model.safetensors":
            (folder / entry.name).symlink_to(entry)
    generator = torch.Generator().manual_seed(1)
    stored = {
        name: weight if "visual." in name else weight + 0.02 * torch.randn(weight.shape, generator=generator)
        for name, weight in load_file(nano_checkpoint / "model.safetensors").items()
    }
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def settings(nano_checkpoint, expert, tmp_path) -> dict:
    """Two experts: of warm colours another model, of the others the student as it starts."""
    recipe = small_recipe(nano_checkpoint, tmp_path)
    rows = [{"prompt": f"a {colour} square", "task": task} for colour, task in TASKS.items()]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trainer = {"max_steps": 2, "save_steps": 1, "learning_rate": 1e-4}
    recipe = changed(recipe, rollout={"samples_per_prompt": 2}, trainer=trainer)
    return {**recipe, "rewards": [], "distill": {"experts": {"warm": {"path": str(expert)}, "default": {}}}}


def test_each_prompt_has_the_expert_of_its_task(settings):
    folder = run(settings)
    to_itself, to_another = (logged(folder, f"distill/{name}/kl") for name in ("default", "warm"))
    assert to_itself[0] == pytest.approx(0, abs=1e-9)
    assert 0 < to_another[1] < to_another[0]
    # Of each colour as many are drawn, and the loss is their mean.
    assert logged(folder, "kl")[0] == pytest.approx(to_another[0] / 2, rel=1e-5)
    assert logged(folder, "loss")[0] == pytest.approx(logged(folder, "kl")[0], rel=1e-5)
    assert not any(key.startswith(("reward", "seconds/decode")) for line in folder.read() for key in line)
    card = (folder.final / "README.md").read_text()
    assert "after distillation with uniar-rl" in card
    assert "was trained with on-policy distillation from experts (warm, default; by task)" in card
    assert "KL to experts, nats per bit" in folder.report.read_text()


def test_experts_by_tag_that_wait_on_the_device(settings):
    prompts = Path(settings["data"]["prompts"])
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    tagged = [{"prompt": row["prompt"], "task": "draw", "metadata": {"tag": row["task"]}} for row in rows]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in tagged))
    micro_batches = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    folder = run(settings, distill={"by": "tag", "device": "gpu"}, trainer=micro_batches)
    to_itself, to_another = (logged(folder, f"distill/{name}/kl") for name in ("default", "warm"))
    assert to_itself[0] == pytest.approx(0, abs=1e-9)
    assert 0 < to_another[1] < to_another[0]
    assert logged(folder, "kl")[0] == pytest.approx(to_another[0] / 2, rel=1e-5)


@pytest.mark.parametrize("model", [{}, {"lora": {"r": 4}}], ids=["full", "lora"])
def test_a_student_without_guidance_learns_what_guidance_does(settings, model):
    experts = {"experts": {"default": {"guidance_scale": 2.0, "temperature": 0.5}}}
    trainer = {"max_steps": 6, "learning_rate": 1e-3, "save_steps": 6}
    folder = run({**settings, "distill": experts}, model=model, trainer=trainer)
    divergence = logged(folder, "distill/default/kl")
    assert divergence[-1] < 0.8 * divergence[0]
    assert logged(folder, "kl") == divergence


def test_an_adapter_and_a_checkpoint_are_experts(settings, tmp_path):
    taught = run(settings, model={"lora": {"r": 4}}, output_dir=str(tmp_path / "taught"), trainer={"max_steps": 1})
    checkpoint = taught.path / "checkpoint-1"
    adapter = tmp_path / "adapter"
    assert main(["export", str(checkpoint), "--output", str(adapter), "--adapter-only"]) == 0
    found = []
    for number, path in enumerate((checkpoint, adapter, taught.final)):
        experts = {"experts": {"default": {"path": str(path)}}}
        once = {"max_steps": 1, "save_strategy": "no"}
        found += logged(
            run({**settings, "distill": experts}, trainer=once, output_dir=str(tmp_path / f"run-{number}")), "kl"
        )
    assert found[0] > 0
    assert found[1:] == pytest.approx([found[0]] * 2, rel=1e-3)


def test_a_run_that_was_resumed_is_the_same(settings, tmp_path):
    whole = run(settings, trainer={"max_steps": 3})
    cut = shutil.copytree(whole.path, tmp_path / "cut")
    for name in ("checkpoint-2", "checkpoint-3", "final", "final.json"):
        shutil.rmtree(cut / name) if (cut / name).is_dir() else (cut / name).unlink()
    resumed = run(settings, resume=True, trainer={"max_steps": 3}, output_dir=str(cut))
    assert logged(resumed, "kl") == logged(whole, "kl")
    one, two = weights(whole.final), weights(resumed.final)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture
def mixed(nano_checkpoint, expert, tmp_path) -> dict:
    """Drawings, edits, answers and chains of them; another model is the expert of answers and of thoughts."""
    recipe = mixed_recipe(nano_checkpoint, tmp_path)
    recipe = changed(recipe, trainer={"learning_rate": 1e-4})
    path = {"path": str(expert)}
    return {**recipe, "rewards": [], "distill": {"experts": {"vqa": path, "think": path, "default": {}}}}


def test_what_is_written_has_experts_too(mixed):
    folder = run(mixed)
    for kind in ("", "text/"):
        assert logged(folder, f"distill/default/{kind}kl")[0] == pytest.approx(0, abs=1e-9)
    for name in ("vqa/text", "think/text", "think"):
        assert all(value > 0 for value in logged(folder, f"distill/{name}/kl")), name
    assert not logged(folder, "distill/vqa/kl")  # answers draw nothing


@pytest.mark.parametrize("engine", ["ddp", "zero2", pytest.param("zero3", marks=pytest.mark.slow)])
def test_two_processes_are_one(mixed, tmp_path, engine):
    one = run(mixed, output_dir=str(tmp_path / "one"))
    trainer = {"per_device_train_batch_size": 8, "deepspeed": None if engine == "ddp" else deepspeed(engine)}
    two, _ = launch(mixed, 2, trainer=trainer)
    for key in ("kl", "text/kl", "distill/vqa/text/kl", "distill/think/kl", "distill/default/text/kl"):
        assert logged(two, key) == pytest.approx(logged(one, key), rel=1e-3, abs=1e-7), key
    first, second = weights(one.final), weights(two.final)
    assert all(torch.allclose(first[name].float(), second[name].float(), atol=1e-4) for name in first)


def test_an_expert_of_another_size(mixed, tmp_path, monkeypatch):
    wide = replace(PRESETS["nano"], text_hidden=96, text_layers=2)
    monkeypatch.setitem(PRESETS, "wide", wide)
    path = {"path": str(build_preset("wide", tmp_path / "wide"))}
    folder = run({**mixed, "distill": {"experts": {"vqa": path, "default": path}}}, trainer={"max_steps": 1})
    for key in ("default/kl", "default/text/kl", "vqa/text/kl"):
        assert logged(folder, f"distill/{key}")[0] > 0


def test_the_plan_counts_experts(settings, capsys, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(settings))

    def experts(*overrides: str) -> list[str]:
        assert main(["plan", str(path), *overrides]) == 0
        (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("experts ")]
        return row.split()[1:]

    (one_at_a_time,) = experts()
    everywhere = experts("distill.device=gpu")
    assert len(everywhere) > 1
    assert float(everywhere[0]) == pytest.approx(2 * float(one_at_a_time), abs=0.02)
