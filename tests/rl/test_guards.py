"""Guards against reward hacking: evaluations that are held against the run's first one."""

import dataclasses
import json
import logging
from types import SimpleNamespace

import pytest
import torch
from support.fresh_process import ROOT
from support.training_runs import changed, launch, logged, run, small_recipe
from transformers import TrainerControl

from rl.config.recipe import recipe_from_mapping
from rl.config.watch import GuardsSection
from rl.evaluation.evaluate import Evaluation
from rl.evaluation.look import Look
from rl.run.curves import GUARDS_SAID, rise
from rl.train import train
from rl.trainer.extensions.guards import Guards
from uniar.errors import UserError

RISING = [{"reward": value} for value in (0.1, 0.12, 0.2, 0.3, 0.4, 0.5, 0.58, 0.6)]
FLAT = [{"reward": value} for value in (0.3, 0.5, 0.4, 0.3, 0.4, 0.5, 0.4, 0.3)]
ASKED = [0.9, 0.8, 0.7, 0.8, 0.9, 0.6, 0.7, 0.8]
PICTURES = {"spread": 0.2, "sharpness": 10.0, "duplicates": 0}
HELD_OUT = [{"use": "color", "color": "red"}, {"use": "color", "color": "blue", "name": "asked"}]


@pytest.fixture
def settings(nano_checkpoint, tmp_path) -> dict:
    recipe = small_recipe(nano_checkpoint, tmp_path)
    held_out = {"prompts": recipe["data"]["prompts"], "every": 1, "temperature": 1.0, "samples_per_prompt": 4}
    return changed(recipe, evaluate={**held_out, "at_start": True}, trainer={"save_strategy": "no"})


@pytest.fixture
def guards_of(settings):
    recipe = recipe_from_mapping(changed(settings, rewards=[{"use": "color", "color": "red"}], eval_rewards=HELD_OUT))

    def made(measured: str = "prompts", **limits) -> Guards:
        guards = Guards(GuardsSection(**limits), recipe, measured)
        guards.attach(SimpleNamespace(accelerator=SimpleNamespace(is_main_process=True)))
        return guards

    return made


def evaluation(asked=ASKED, trained=0.5, **look) -> Evaluation:
    values = torch.tensor([[trained] * len(asked), asked], dtype=torch.float64).T
    seen = Look(saturation=0.5, brightness=0.5, kilobytes=1.0, within_prompts=True, compared=8, **{**PICTURES, **look})
    return Evaluation(("color", "asked"), values, values.mean(1), [], 0.1, look=seen)


def said_of(guards: Guards, *evaluations: Evaluation, history=RISING) -> list[str]:
    """What is said of the last."""
    for step, each in enumerate(evaluations):
        said = guards.evaluated(step, each, history, TrainerControl())
    return said


@pytest.mark.parametrize(
    ("after", "values"),
    [
        ({"spread": 0.15}, "diversity of pictures is 0.15, 75% of the start's 0.2 (watch.guards.diversity 80%)"),
        ({"sharpness": 25.0}, "sharpness of pictures is 25, 2.5 times the start's 10 (watch.guards.sharpness 2)"),
        ({"sharpness": 4.0}, "sharpness of pictures is 4, 0.4 times the start's 10 (watch.guards.sharpness 2): blur"),
        ({"duplicates": 2}, "25% of the pictures nearly repeat one of another prompt, 0% at the start"),
        (
            {"asked": [score - 0.1 - n / 100 for n, score in enumerate(ASKED)]},
            "and asked, which is not trained on, fell",
        ),
    ],
)
def test_a_limit_that_is_passed_is_said_in_a_sentence(guards_of, caplog, after, values):
    with caplog.at_level(logging.WARNING):
        (said,) = said_of(guards_of(), evaluation(), evaluation(**after))
    assert said.startswith("update 1: ")
    assert values in said
    assert said in caplog.text


def test_what_is_within_the_limits_is_not(guards_of):
    near = evaluation([score - 0.1 * (-1) ** n for n, score in enumerate(ASKED)], 0.1, spread=0.17, sharpness=19.0)
    assert said_of(guards_of(), evaluation(), near) == []  # a reward that is trained on may fall


def test_the_scores_fall_only_where_the_training_reward_has_risen(guards_of):
    fallen = evaluation([score - 0.3 for score in ASKED])
    assert "the training reward rose by 0.48" in said_of(guards_of(), evaluation(), fallen)[0]
    assert said_of(guards_of(), evaluation(), fallen, history=FLAT) == []
    assert said_of(guards_of(), evaluation(), fallen, history=RISING[:3]) == []
    assert rise([line["reward"] for line in RISING])[0] == pytest.approx(0.48)


def test_null_watches_nothing_and_no_pictures_are_no_fault(guards_of):
    off = dict.fromkeys(("untrained", "diversity", "sharpness", "near_duplicates"))
    bad = evaluation([0.0] * 8, spread=0.0, sharpness=90.0, duplicates=8)
    assert len(said_of(guards_of(), evaluation(), bad)) == 4
    assert said_of(guards_of(**off), evaluation(), bad) == []
    assert said_of(guards_of(), dataclasses.replace(evaluation(), look=None), evaluation()) == []
    assert said_of(guards_of(), evaluation(spread=float("nan")), evaluation()) == []


def test_the_start_survives_a_resume(guards_of):
    whole, first, second = guards_of(), guards_of(), guards_of()
    bad = evaluation([0.1] * 8, spread=0.1)
    said_of(first, evaluation([*ASKED[:-1], float("nan")]))
    second.set_state(json.loads(json.dumps(first.state(), allow_nan=False)))
    (found,) = [second.evaluated(1, bad, RISING, TrainerControl())]
    assert len(found) == 2
    assert found == said_of(whole, evaluation([*ASKED[:-1], float("nan")]), bad)
    other = guards_of(measured="other prompts")
    other.set_state(first.state())
    assert other.evaluated(1, bad, RISING, TrainerControl()) == []  # the first of its kind


def test_stop_ends_training_and_says_so(guards_of):
    guards, control = guards_of(action="stop"), TrainerControl()
    guards.evaluated(0, evaluation(), [], control)
    assert not control.should_training_stop
    guards.evaluated(5, evaluation(spread=0.1, sharpness=1.0), RISING, control)
    assert control.should_training_stop
    why = "stopped after update 5: past watch.guards.diversity and watch.guards.sharpness"
    assert (guards.report(5, 9), guards.report(5, 5)) == ([why], [])
    resumed, otherwise = guards_of(action="stop"), guards_of(action="warn")
    for each in (resumed, otherwise):
        each.set_state(guards.state())
    assert (resumed.stopped, otherwise.stopped) == (guards.stopped, None)


def test_a_gamed_run_stops_and_resumed_stays_finished(settings, tmp_path, capsys):
    # Paid for red, and measured by what is not red.
    (reward,) = settings["rewards"]
    paid = {
        "rewards": [{**reward, "weight": -1.0}],
        "eval_rewards": [{**reward, "tolerance": 0.3, "name": "asked"}],
        "watch": {"guards": {"action": "stop", "untrained": 1.0, "diversity": None, "sharpness": None}},
        "trainer": {"max_steps": 30, "learning_rate": 3e-3},
    }
    folder = run(settings, **paid)
    lines = folder.read()
    (said,) = [line[GUARDS_SAID] for line in lines if line.get(GUARDS_SAID)]
    assert "and asked, which is not trained on, fell by" in said[0]
    last = lines[-1]["step"]
    assert 3 < last < 30
    assert f"stopped after update {last}: past watch.guards.untrained" in capsys.readouterr().out
    assert {"eval_look/diversity", "eval_look/sharpness", "eval_look/near_duplicates"} <= set().union(*lines)
    assert [line["eval_guards/passed"] for line in lines if "eval_guards/passed" in line] == [0] * last + [1]
    assert said[0].partition(" fell by ")[0].split("update ")[1] in folder.report.read_text()
    run(settings, resume=True, **paid)
    assert folder.read() == lines


def test_a_resumed_run_says_what_the_whole_one_did(settings, tmp_path):
    strict = {"watch": {"guards": {"diversity": 1.0, "sharpness": 1.0001, "near_duplicates": None}}}
    trainer = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    whole = run(settings, **strict, trainer=trainer, output_dir=str(tmp_path / "whole"))
    parts = str(tmp_path / "parts")
    run(settings, **strict, trainer={**trainer, "max_steps": 2}, evaluate={"at_end": False}, output_dir=parts)
    resumed = run(settings, resume=True, **strict, trainer=trainer, output_dir=parts)
    said = [[line[GUARDS_SAID] for line in each.read() if GUARDS_SAID in line] for each in (whole, resumed)]
    assert said[0]
    assert said[0] == said[1]


@pytest.mark.slow
def test_two_processes_stop_together(settings, tmp_path):
    """Only one of them has the pictures and the scores."""
    strict = {"action": "stop", "diversity": 1.0, "sharpness": 1.0001, "near_duplicates": None}
    sections = {"watch": {"guards": strict}}
    one = run(settings, **sections, trainer={"max_steps": 6})
    trainer = {"max_steps": 6, "per_device_train_batch_size": 4}
    two, output = launch(settings, 2, **sections, trainer=trainer, output_dir=str(tmp_path / "two"))
    assert two.read()[-1]["step"] == one.read()[-1]["step"] < 6
    assert output.count("stopped after update ") == 1
    for key in ("eval_look/diversity", "eval_look/sharpness", "eval_guards/passed"):
        assert logged(two, key) == pytest.approx(logged(one, key), rel=1e-3), key
    assert [said[0].split(" is ")[0] for said in logged(two, GUARDS_SAID)] == ["update 1: the sharpness of pictures"]


def test_what_it_needs(settings):
    with pytest.raises(
        UserError, match=r"watch\.guards\.diversity is measured on the pictures that are kept, and reco"
    ):
        train(recipe_from_mapping(changed(settings, watch={"guards": {}}, records={"picture_size": 0})))


def test_the_page_quotes_what_is_said(guards_of):
    """Of the run itself tests/rl/test_tiny_rl.py has a slow test."""
    page = (ROOT / "docs" / "reward-hacking.md").read_text()
    guards, control = guards_of(action="stop"), TrainerControl()
    assert guards.evaluated(0, evaluation(sharpness=6.72), [], control) == []
    (said,) = guards.evaluated(20, evaluation(sharpness=14.2), [], control)
    assert f"WARNING: {said}\n" in page
    assert f"{guards.report(20, 60)[0]}\n" in page
