"""Runs that end when their held-out score has stopped rising, and keep the best model."""

import json
import math

import pytest
from support.training_runs import changed, deepspeed, launch, logged, run, small_recipe, weights
from transformers import TrainerControl

from rl.config.recipe import recipe_from_mapping
from rl.config.sections import EarlyStopSection
from rl.train import train
from rl.trainer.extensions.early_stop import EarlyStop
from uniar.errors import UserError


@pytest.fixture
def settings(nano_checkpoint, tmp_path) -> dict:
    recipe = small_recipe(nano_checkpoint, tmp_path)
    (tmp_path / "held_out.jsonl").write_text(json.dumps({"prompt": "a red circle", "task": "color"}) + "\n")
    held_out = {"prompts": str(tmp_path / "held_out.jsonl"), "every": 1, "temperature": 1.0, "samples_per_prompt": 8}
    return changed(recipe, evaluate={**held_out, "at_start": True})


def seen(scores: list[float], **section) -> tuple[EarlyStop, list[bool], list[bool]]:
    """A watcher that has seen these scores: which of them were the best so far, after which training should end."""
    early_stop, control = EarlyStop(EarlyStopSection(**section)), TrainerControl()
    best, ended = [], []
    for step, score in enumerate(scores):
        best.append(early_stop.evaluated(step, {"eval_reward": score}, control))
        ended.append(control.should_training_stop)
    return early_stop, best, ended


def test_patience_and_min_delta(tmp_path):
    early_stop, best, ended = seen([0.1, 0.2, 0.24, 0.3, 0.3, 0.34], patience=2, min_delta=0.05)
    assert best == [True, True, False, True, False, False]
    assert ended == [False, False, False, False, False, True]
    assert (early_stop.best, early_stop.best_step) == (0.3, 3)
    assert early_stop.stopped == "held-out reward has not risen by more than 0.05 in 2 evaluations"
    why = f"stopped after update 5: {early_stop.stopped}"
    best_model = f"best model {tmp_path}: held-out reward 0.3000 after update 3"
    assert early_stop.report(5, 9, tmp_path).splitlines() == [why, best_model]
    assert early_stop.report(5, 5, tmp_path) == best_model  # it would have ended there anyway
    assert early_stop.report(5, 5, tmp_path / "gone").endswith("replaced it before the run was resumed")


def test_where_no_evaluation_is_better_there_is_no_best_model(settings, tmp_path, capsys):
    early_stop, best, ended = seen([0.3, 0.2, 0.1], patience=2)
    assert (best, ended) == ([True, False, False], [False, False, True])
    assert early_stop.report(2, 9, tmp_path / "best").splitlines() == [
        "stopped after update 2: held-out reward has not risen by more than 0 in 2 evaluations",
        "no evaluation was better than the starting model's",
    ]
    evaluate = {"early_stop": {"patience": 1, "min_delta": 2.0}}  # which no score reaches
    folder = run(settings, evaluate=evaluate, trainer={"max_steps": 3, "save_strategy": "no"})
    assert len(logged(folder, "eval_reward")) == 2
    assert "no evaluation was better than the starting model's" in capsys.readouterr().out
    assert not folder.best.exists()


def test_a_score_that_is_missing_is_no_improvement():
    _, best, ended = seen([0.1, math.nan, 0.2, math.nan], patience=1)
    assert best == [True, False, True, False]
    assert ended == [False, True, True, True]


def test_a_run_that_gets_worse_ends_and_its_best_model_is_kept(settings, capsys):
    # A negative weight teaches what the evaluation, by its own rewards, punishes.
    (reward,) = settings["rewards"]
    teaching = {"rewards": [{**reward, "weight": -1.0}], "eval_rewards": [reward]}
    trainer = {"max_steps": 30, "save_strategy": "no", "learning_rate": 3e-3}
    folder = run(settings, **teaching, trainer=trainer, evaluate={"early_stop": {"patience": 2}})
    scores = logged(folder, "eval_reward")
    best = max(range(len(scores)), key=scores.__getitem__)
    assert len(scores) == best + 3 < 30
    output = capsys.readouterr().out
    assert f"stopped after update {best + 2}: held-out reward has not risen by more than 0 in 2 evaluations" in output
    # The starting model is there already.
    assert folder.best.exists() == (best > 0)
    assert ("no evaluation was better than the starting model's" in output) == (best == 0)


def test_the_best_model_is_exported_and_the_state_resumed(settings, tmp_path, capsys):
    # What has been drawn at the last update decides; a gain of 2 never comes, so one improvement is all there is.
    evaluate = {"early_stop": {"metric": "color", "patience": 2, "min_delta": 2.0}, "at_start": False}
    trainer = {"max_steps": 6, "save_steps": 1}
    whole = run(settings, trainer=trainer, evaluate=evaluate, output_dir=str(tmp_path / "whole"))
    assert len(logged(whole, "eval_reward")) == 3
    assert f"best model {whole.best}: held-out color" in capsys.readouterr().out
    assert "1 updates" in (whole.best / "README.md").read_text()
    first = run(settings, trainer={**trainer, "max_steps": 1}, output_dir=str(tmp_path / "first"))
    best = weights(whole.best)
    assert all(tensor.equal(best[name]) for name, tensor in weights(first.final).items())
    parts = str(tmp_path / "parts")
    run(settings, trainer={**trainer, "max_steps": 2}, evaluate={**evaluate, "at_end": False}, output_dir=parts)
    resumed = run(settings, resume=True, trainer=trainer, evaluate=evaluate, output_dir=parts)
    assert logged(resumed, "eval_reward") == logged(whole, "eval_reward")


def test_what_it_needs(settings):
    with pytest.raises(UserError, match=r"evaluate\.early_stop looks at evaluations during training; set evaluate"):
        recipe_from_mapping(changed(settings, evaluate={"early_stop": {}, "every": None}))
    with pytest.raises(UserError, match=r"evaluate\.early_stop\.metric is 'colour', expected one of reward, color\."):
        train(recipe_from_mapping(changed(settings, evaluate={"early_stop": {"metric": "colour"}})))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_two_processes_stop_together(settings, tmp_path, engine):
    sections = {
        "model": {"ema": {"decay": 0.5}},
        "evaluate": {"early_stop": {"patience": 2, "min_delta": 2.0}, "at_start": False, "ema": True},
    }
    one = run(settings, **sections, trainer={"max_steps": 6, "save_steps": 1})
    trainer = {"max_steps": 6, "save_steps": 1, "per_device_train_batch_size": 4}
    trainer |= {} if engine == "ddp" else {"deepspeed": deepspeed(engine)}
    two, output = launch(settings, 2, **sections, trainer=trainer, output_dir=str(tmp_path / "two"))
    assert logged(two, "eval_reward") == pytest.approx(logged(one, "eval_reward"), abs=1e-5)
    assert len(logged(two, "eval_reward")) == 3
    assert output.count("stopped after update 3:") == 1
    best = weights(two.best)
    assert all(tensor.allclose(best[name], atol=1e-4) for name, tensor in weights(one.best).items())
