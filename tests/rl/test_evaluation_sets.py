"""`evaluate.sets`: each named set is evaluated as a recipe of its own would be, and records tell them apart."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from support.planned_recipes import plan_of
from support.run_folders import rows_of
from support.training_runs import changed, launch, logged, run, small_recipe

from rl.cli import main
from rl.config.evaluation_sets import sets_of
from rl.config.recipe import load_recipe, recipe_from_mapping
from rl.records.rows import read_rows
from rl.report.paired import compare_rows
from rl.run.finished import report
from rl.trainer.extensions.early_stop import check_metric
from uniar.errors import UserError

SETS = {
    "wide": {"height": 32, "width": 96, "temperature": 1.0, "limit": 1, "samples_per_prompt": 3},
    "blues": {"prompts": "blues.jsonl", "rewards": ["compressibility", {"use": "color", "color": "blue"}]},
}


@pytest.fixture
def settings(nano_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = small_recipe(nano_checkpoint, tmp_path)
    (tmp_path / "held_out.jsonl").write_text('{"prompt": "a red circle"}\n{"prompt": "a blue circle"}\n')
    lines = [{"prompt": f"{n} blues", "task": "ab"[n % 2], "metadata": {"tag": "cd"[n // 2]}} for n in range(4)]
    (tmp_path / "blues.jsonl").write_text("\n".join(map(json.dumps, lines)))
    evaluate = {"prompts": str(tmp_path / "held_out.jsonl"), "at_start": True, "sets": SETS}
    return changed(recipe, evaluate=evaluate, trainer={"max_steps": 1, "save_steps": 1})


def test_each_set_is_scored_as_alone(settings, tmp_path, capsys):
    both = run(settings, output_dir=str(tmp_path / "both"))
    report(both)
    said, scores = capsys.readouterr().out, [line for line in both.read() if "eval_reward" in line]
    for name in SETS:
        first, last = (line[f"eval_{name}/reward"] for line in (scores[0], scores[-1]))
        assert f"held-out {name}: {first:.4f} -> {last:.4f}\n" in said
    [line, *_] = [line for line in both.read() if "eval_reward" in line]
    rows = read_rows(both.rows(1))
    assert rows["set"].to_pylist() == ["wide"] * 3 + ["blues"] * 4
    kept = json.loads((both.evaluations / "step-000000.json").read_text())
    assert len(kept["total"]) == 7
    assert kept["compressibility"][:3] == [None] * 3
    for name, values in SETS.items():
        rollout = {key: values[key] for key in ("height", "width") if key in values}
        own = {key: value for key, value in values.items() if key not in ("height", "width", "rewards")}
        alone = run(
            settings,
            evaluate={"sets": {}, **own},
            eval_rewards=values.get("rewards", []),
            rollout=rollout,
            trainer={"max_steps": 1, "save_strategy": "no"},
            output_dir=str(tmp_path / name),
        )
        [expected, *_] = [found for found in alone.read() if "eval_reward" in found]
        keys = [key for key in expected if key.startswith("eval_") and key != "eval_seconds"]
        assert {key: line[f"eval_{name}/{key[5:]}"] for key in keys} == {key: expected[key] for key in keys}
        first = read_rows(alone.rows(0))
        same = read_rows(both.rows(0)).filter(pa.compute.equal(read_rows(both.rows(0))["set"], name))
        for column in ("id", "sample", "seed", "total", "picture"):
            assert same[column].to_pylist() == first[column].to_pylist()
    totals = read_rows(both.rows(0))["total"].to_pylist()
    assert line["eval_reward"] == pytest.approx(sum(totals) / 7)
    blues = totals[3:]
    assert line["eval_blues/task/a"] == pytest.approx((blues[0] + blues[2]) / 2)
    assert line["eval_blues/tag/d"] == pytest.approx((blues[2] + blues[3]) / 2)
    assert (both.samples / "step-000000.png").stat().st_size > 1000
    page = both.report.read_text()
    assert "total of wide, held-out" in page
    assert "by set" in page


def test_the_command_evaluates_the_sets_too(settings, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(settings))
    assert main(["evaluate", str(recipe), "--output", str(tmp_path / "scores")]) == 0
    said = capsys.readouterr().out
    assert "\nwide/reward: " in said
    assert "\nblues/tag/c: " in said
    folder = tmp_path / "scores"
    assert main(["compare", str(folder), str(folder), "--json"]) == 0
    by_set = json.loads(capsys.readouterr().out)["by_set"]
    assert [(one["name"], one["samples"]) for one in by_set] == [("blues", 4), ("wide", 3)]


@pytest.mark.slow
def test_decoding_processes_serve_the_sets(settings, tmp_path):
    here = run(settings, output_dir=str(tmp_path / "here"))
    there, _ = launch(settings, 2, decode={"processes": 1}, output_dir=str(tmp_path / "there"))
    for key in ("eval_reward", "eval_wide/reward", "eval_blues/color", "eval_blues/tag/c"):
        assert logged(there, key) == logged(here, key), key
    assert there.rows(1).read_bytes() == here.rows(1).read_bytes()


def test_what_is_null_is_as_evaluate_has_it(settings):
    recipe = recipe_from_mapping(settings)
    wide, blues = sets_of(recipe).values()
    assert (wide.rollout.height, wide.rollout.width, wide.evaluate.temperature, wide.evaluate.limit) == (32, 96, 1.0, 1)
    assert (wide.evaluate.prompts, wide.eval_rewards) == (recipe.evaluate.prompts, recipe.eval_rewards)
    assert (blues.rollout.height, blues.evaluate.temperature, blues.evaluate.limit) == (64, 0.1, None)
    assert blues.eval_rewards[0] == {"use": "compressibility"}
    assert recipe_from_mapping(json.loads(json.dumps(recipe.to_mapping()))).evaluate == recipe.evaluate
    few = sets_of(recipe_from_mapping(changed(settings, evaluate={"limit": 3}))).values()
    assert [one.evaluate.limit for one in few] == [1, 3]  # of each set its own, and never more than this
    alone = recipe_from_mapping(changed(settings, evaluate={"sets": {}}))
    assert sets_of(alone) == {None: alone}


def test_sets_are_overridden_and_found_beside_their_recipe(settings, tmp_path, monkeypatch):
    (tmp_path / "recipe.yaml").write_text(json.dumps(settings))
    monkeypatch.chdir("/")
    recipe = load_recipe(tmp_path / "recipe.yaml", ["evaluate.sets.wide.temperature=0.5", "evaluate.sets.new.limit=1"])
    assert recipe.evaluate.sets["wide"].temperature == 0.5
    assert recipe.evaluate.sets["new"].limit == 1
    assert recipe.evaluate.sets["blues"].prompts == str(tmp_path / "blues.jsonl")


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        ({"a": {"temperatur": 1}}, "unknown key 'evaluate.sets.a.temperatur'. Did you mean 'temperature'?"),
        ({"a": {"limit": 0}}, "evaluate.sets.a.limit is 0, expected a whole number ≥ 1 or null."),
        ({"a": 3}, "evaluate.sets.a is 3 (a whole number), expected a mapping of settings."),
        ({"a/b": {"limit": 1}}, "evaluate.sets has a set 'a/b'; letters, digits, '_', '-' and '.' are allowed."),
        ({"a": {"rewards": [{"use": "color", "weight": "x"}]}}, "evaluate.sets.a.rewards.0.weight is 'x'"),
        (["a"], "evaluate.sets is ['a'] (a list), expected a mapping."),
    ],
)
def test_what_cannot_work_is_said(settings, sets, words):
    with pytest.raises(UserError) as error:
        recipe_from_mapping(changed(settings, evaluate={"sets": sets}))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("one", "words"),
    [
        ({"prompts": "none.jsonl"}, "evaluate.sets.a: recipe: evaluate.prompts: the prompt file 'none.jsonl' does not"),
        (
            {"rewards": [{"use": "colour"}]},
            "evaluate.sets.a: recipe: eval_rewards: reward 'colour': there is no reward 'colour'",
        ),
        ({"width": 100}, "evaluate.sets.a: recipe: rollout.width: width 100 is not a multiple of 32 pixels"),
        ({"upsampling_ratio": 1.7}, "decode.upsampling_ratio"),
    ],
)
def test_what_cannot_be_evaluated_is_said_before_a_run(settings, one, words):
    with pytest.raises(UserError) as error:
        run(settings, evaluate={"sets": {"a": one}})
    assert words in str(error.value)
    with pytest.raises(UserError, match=r"evaluate\.sets\.a has no prompts, and evaluate\.prompts is null"):
        recipe_from_mapping(changed(settings, evaluate={"prompts": None, "sets": {"a": {}}}))


def test_early_stop_may_name_the_score_of_a_set(settings):
    names = {"wide": ["color"], "blues": ["compressibility", "color"]}
    for metric in ("reward", "color", "wide/reward", "blues/compressibility"):
        evaluate = {"every": 1, "early_stop": {"metric": metric}}
        check_metric(recipe_from_mapping(changed(settings, evaluate=evaluate)), names)
    evaluate = {"every": 1, "early_stop": {"metric": "wide/compressibility"}}
    with pytest.raises(
        UserError, match="is 'wide/compressibility', expected one of reward, color, compressibility, wide"
    ):
        check_metric(recipe_from_mapping(changed(settings, evaluate=evaluate)), names)


def test_the_plan_counts_the_largest_set(settings):
    def evaluation_of(sets) -> dict[str, int]:
        plan = plan_of(recipe_from_mapping(changed(settings, evaluate={"sets": sets})))
        return {part.name: part.bytes for part in plan.parts}

    small, large = ({"a": {"height": side, "width": side, "guidance_scale": 1.0}} for side in (64, 128))
    both = evaluation_of({**small, "b": large["a"]})
    alone = evaluation_of(large)
    assert both == alone
    for name in ("KV caches of evaluations", "decoding"):
        assert alone[name] > evaluation_of(small)[name], name


def test_the_same_prompt_in_two_sets_is_two_samples():
    rows = rows_of(6, np.array([0.0, 1.0, 0.0, 1.0, 1.0, 0.0]))
    two = [rows.set_column(rows.schema.get_field_index("set"), "set", pa.array([name] * 6)) for name in "ab"]
    before = pa.concat_tables(two)
    found = compare_rows(before, before)
    assert [(one.name, one.samples, one.before) for one in found.by_set] == [("a", 6, 0.5), ("b", 6, 0.5)]
    assert found.total.samples == 12
    assert not math.isnan(found.total.low)
