"""Reinforcement learning from the committed UniAR-Tiny, judged by the pictures and answers that come of it."""

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from rl.cli import main
from rl.recipe import load_recipe

ROOT = Path(__file__).parent.parent
RECIPES = sorted(file.name for file in (ROOT / "configs").glob("tiny_*.yaml"))


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


@pytest.mark.parametrize("name", ["tiny_lora", "quickstart"])
def test_an_exported_model_scores_as_the_trained_one(name, tmp_path):
    """Drawings and answers of `final`, loaded anew, against the run's own last evaluation. Weights are trained in
    float32 and exported in the checkpoint's bfloat16, so a sample in a few dozen may come out otherwise."""
    few = ["evaluate.limit=48", "understanding.limit=40", "understanding.batch_size=40"]
    short = ["trainer.per_device_train_batch_size=16", "algorithm.num_iterations=1", "trainer.max_steps=2"]
    run, scores = tmp_path / "run", tmp_path / "scores"
    assert main(["train", f"configs/{name}.yaml", *few, *short, f"output_dir={run}"]) == 0
    evaluate = ["evaluate", f"configs/{name}.yaml", *few, "--output", str(scores)]
    assert main([*evaluate, "--model", str(run / "final")]) == 0

    trained = json.loads((run / "evaluations" / "step-000002.json").read_text())
    exported = json.loads((scores / "scores.json").read_text())["metrics"]
    assert len(trained["total"]) == 48
    assert abs(statistics.fmean(trained["total"]) - exported["eval_reward"]) <= 2.5 / 48
    said = trained["understanding"]["exact_match"]
    assert len(said) == 40
    assert abs(statistics.fmean(said) - exported["eval_understanding/exact_match"]) <= 2.5 / 40


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
