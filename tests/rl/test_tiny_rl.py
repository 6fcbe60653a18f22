"""Reinforcement learning from the committed UniAR-Tiny, judged by the pictures and answers that come of it."""

import json
import math
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from rl.cli import main
from rl.config.recipe import load_recipe

ROOT = Path(__file__).parents[2]
TURNS = ["tiny_joint.yaml", "tiny_answer.yaml", "tiny_edit.yaml"]  # they need pictures that a command makes
RECIPES = sorted({file.name for file in (ROOT / "configs").glob("tiny_*.yaml")} - {*TURNS})


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # recipes name the model and the prompts from there


@pytest.mark.parametrize("name", [*RECIPES, "quickstart.yaml"])
def test_recipes_train_uniar_tiny_on_training_prompts_and_judge_held_out_ones_strictly(name):
    recipe = load_recipe(f"configs/{name}")
    assert recipe.model.path == "assets/uniar-tiny"
    assert (recipe.data.prompts, recipe.evaluate.prompts) == (
        "configs/prompts/shapes/train.jsonl",
        "configs/prompts/shapes/held_out.jsonl",
    )
    assert recipe.eval_rewards[0]["credit"] == "strict"
    assert recipe.understanding.questions == "configs/prompts/shapes/questions_held_out.jsonl"


@pytest.fixture(scope="module")
def with_pictures(tmp_path_factory) -> Path:
    """A folder that has the recipes, and what the command in their heads makes, with fewer questions and edits."""
    folder = tmp_path_factory.mktemp("turns")
    for name in ("assets", "configs"):
        (folder / name).symlink_to(ROOT / name)
    commands = {re.search(r"uniar-rl (prompts .*)", (ROOT / "configs" / name).read_text()).group(1) for name in TURNS}
    [command] = commands  # all name the same folder
    words = command.split()
    assert words[-4:] == ["--questions", "6000", "--edits", "2000"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*words[:-4], "--questions", "400", "--edits", "200"]) == 0
        lines = (folder / "configs/prompts/tiny_joint.yaml").read_text()
        fewer = re.sub(r"(?<=sampled_ratio: )\d+", lambda found: str(int(found[0]) // 20), lines)
        (folder / "data/joint.yaml").write_text(fewer)
    return folder


@pytest.mark.parametrize("name", [*TURNS, "tiny_redraw.yaml"])
def test_recipes_of_other_turns_train_what_they_say(name, with_pictures, monkeypatch):
    """Two updates of each, with all held-out sets: as many samples as the recipe says, and what its head promises."""
    monkeypatch.chdir(with_pictures)
    few = [
        "evaluate.limit=8",
        "trainer.max_steps=2",
        "trainer.per_device_train_batch_size=64",
        f"output_dir=runs/{name}",
    ]
    if name in TURNS:
        few += [f"evaluate.sets.{each}.limit=8" for each in ("drawing", "editing", "answering")]
        few += ["data.prompts=data/joint.yaml"] if name == "tiny_joint.yaml" else []
    else:
        few += ["understanding.limit=8"]
    assert main(["train", f"configs/{name}", *few]) == 0
    run = with_pictures / "runs" / name
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    updates = [line for line in lines if "loss" in line]
    assert len(updates) == 2
    writes, draws = name != "tiny_edit.yaml", name != "tiny_answer.yaml"
    assert any("text/entropy" in line for line in updates) == writes
    assert any("entropy" in line for line in updates) == draws
    evaluated = [line for line in lines if "eval_reward" in line]
    assert [line["step"] for line in evaluated] == [0, 2]
    if name in TURNS:
        for each in ("eval_drawing/shapes", "eval_editing/scenes", "eval_answering/exact_match"):
            assert all(0 <= line[each] <= 1 for line in evaluated)


@pytest.fixture(scope="module")
def in_float32(tmp_path_factory) -> Path:
    """UniAR-Tiny with its AR weights in float32, and so its exports: nothing is rounded away."""
    folder = tmp_path_factory.mktemp("tiny") / "uniar-tiny"
    shutil.copytree(ROOT / "assets" / "uniar-tiny", folder)
    weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(("name", "rate"), [("tiny_lora", "2e-2"), ("quickstart", "1e-3")])
def test_an_exported_model_scores_as_the_trained_one(name, rate, in_float32, tmp_path):
    """Drawings and answers of `final`, loaded anew, against the run's own last evaluation, after updates so large that
    the model at the start scores otherwise."""
    few = ["evaluate.limit=48", "understanding.limit=40", "understanding.batch_size=40", f"model.path={in_float32}"]
    short = ["trainer.per_device_train_batch_size=16", "algorithm.num_iterations=1", "trainer.max_steps=4"]
    harsh = [
        "trainer.bf16=false",
        f"trainer.learning_rate={rate}",
        "trainer.warmup_steps=0",
        "trainer.lr_scheduler_type=constant",
    ]
    run, scores = tmp_path / "run", tmp_path / "scores"
    assert main(["train", f"configs/{name}.yaml", *few, *short, *harsh, f"output_dir={run}"]) == 0
    evaluate = ["evaluate", f"configs/{name}.yaml", *few, "--output", str(scores)]
    assert main([*evaluate, "--model", str(run / "final")]) == 0

    before, trained = (json.loads((run / "evaluations" / f"step-{step:06}.json").read_text()) for step in (0, 4))
    exported = json.loads((scores / "scores.json").read_text())["metrics"]
    assert (len(trained["total"]), len(trained["understanding"]["p_answer"])) == (48, 40)
    start, score = (statistics.fmean(found["total"]) for found in (before, trained))
    assert abs(score - start) >= 4 / 48
    assert abs(score - exported["eval_reward"]) <= 1.5 / 48  # an adapter is merged, which rounds
    start, sure = (statistics.fmean(found["understanding"]["p_answer"]) for found in (before, trained))
    assert abs(sure - start) >= 1e-4
    assert exported["eval_understanding/p_answer"] == pytest.approx(sure, abs=2e-5)


@pytest.mark.slow
def test_a_gamed_reward_is_noticed_and_the_run_stops(tmp_path):
    """What docs/reward-hacking.md shows, within what CPUs round otherwise."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "rl.train", "configs/tiny_hacking.yaml", f"output_dir={run}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rewards = [line["reward"] for line in lines if "reward" in line]
    held_out = [line["eval_reward"] for line in lines if "eval_reward" in line]
    last = lines[-1]["step"]
    assert last < 60
    assert f"stopped after update {last}: past watch.guards." in done.stdout
    assert "(watch.guards.sharpness 2): clutter or noise pays" in done.stderr + done.stdout
    assert statistics.fmean(rewards[-5:]) > 1.3 * statistics.fmean(rewards[:5])
    assert held_out[-1] < held_out[0] - 0.04


@pytest.mark.slow
def test_the_quickstart_gains_what_it_promises(tmp_path):
    """Minutes on 2 cores: 12 points and 3 standard errors on held-out captions, answers kept."""
    command = [sys.executable, "-m", "rl.train", "configs/quickstart.yaml", f"output_dir={tmp_path / 'run'}"]
    subprocess.run(command, check=True)
    before, *_, after = (
        json.loads(file.read_text()) for file in sorted((tmp_path / "run" / "evaluations").glob("step-*.json"))
    )
    gains = [b - a for a, b in zip(before["total"], after["total"], strict=True)]
    assert len(gains) >= 400
    gain, error = statistics.fmean(gains), statistics.stdev(gains) / math.sqrt(len(gains))
    assert gain >= 0.12
    assert gain >= 3 * error
    answers = [statistics.fmean(found["understanding"]["exact_match"]) for found in (before, after)]
    assert answers[1] >= answers[0] - 0.03


@pytest.mark.slow
def test_guidance_is_distilled_as_its_recipe_promises(tmp_path):
    """Minutes on 2 cores: without guidance and without a reward, a gain of 12 points and 3 standard errors."""
    overrides = ["evaluate.limit=120", "understanding.questions=null", f"output_dir={tmp_path / 'run'}"]
    subprocess.run(
        [sys.executable, "-m", "rl.cli", "distill", "configs/tiny_distill_guidance.yaml", *overrides], check=True
    )
    before, after = (
        json.loads(file.read_text())["total"] for file in sorted((tmp_path / "run" / "evaluations").glob("step-*.json"))
    )
    gains = [b - a for a, b in zip(before, after, strict=True)]
    gain, error = statistics.fmean(gains), statistics.stdev(gains) / math.sqrt(len(gains))
    assert gain >= 0.12
    assert gain >= 3 * error
