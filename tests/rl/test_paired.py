"""Two evaluations compared sample by sample: intervals, exact tests, refusals, and the command."""

import json
import math
from math import comb

import numpy as np
import pyarrow as pa
import pytest
from support.run_folders import rows_of, write_run

from rl.cli import main
from rl.report.paired import compare_rows, difference, interval
from uniar.errors import UserError


def test_the_interval_is_that_of_a_mean():
    values = np.random.default_rng(1).normal(0.3, 2.0, 400)
    low, high = interval(values)
    error = 1.96 * values.std(ddof=1) / 20
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.05)
    assert interval(values) == (low, high)


def test_samples_of_a_prompt_count_as_one():
    """Four copies of each number say no more than one."""
    values = np.random.default_rng(2).normal(0.0, 1.0, 60)
    copies, prompts = np.repeat(values, 4), [n for n in range(60) for _ in range(4)]
    assert interval(copies, prompts) == pytest.approx(interval(values), abs=1e-9)
    alone = interval(copies)
    assert alone[1] - alone[0] < 0.6 * (interval(values)[1] - interval(values)[0])
    assert all(math.isnan(end) for end in interval(np.array([1.0, 2.0]), ["a", "a"]))


def test_mcnemar_is_exact():
    before, after = np.array([1.0] * 9 + [0.0] * 3 + [1.0] * 8), np.array([0.0] * 9 + [1.0] * 3 + [1.0] * 8)
    found = difference("total", before, after, list(range(20)))
    assert (found.won, found.lost, found.samples) == (3, 9, 20)
    assert found.p == pytest.approx(2 * sum(comb(12, k) for k in range(4)) / 2**12)
    assert not found.worse
    assert difference("total", before, before, list(range(20))).p == 1.0
    assert difference("total", before / 2, after, list(range(20))).p is None


def test_a_sample_without_a_score_is_left_out_of_both():
    nan = math.nan
    found = difference("a", np.array([1.0, nan, 3.0, 0.5]), np.array([2.0, 5.0, nan, 0.0]), list("abcd"))
    assert (found.samples, found.gain, found.won, found.lost) == (2, 0.25, 1, 1)
    assert difference("a", np.array([nan]), np.array([1.0]), ["a"]) is None


def test_by_skill_and_in_any_order():
    one, two = rows_of(30, np.tile([0.0, 1.0, 0.0], 10)), rows_of(30, np.tile([1.0, 1.0, 0.0], 10))
    found = compare_rows(one, two.take(list(reversed(range(30)))))
    assert {row.name: (row.samples, row.gain) for row in found.by_tag} == {
        "colors": (10, 1.0),
        "counting": (10, 0.0),
        "position": (10, 0.0),
    }
    assert found.by_task == []
    assert [(row.name, round(row.gain, 6)) for row in found.rewards] == [("color", 0.333333), ("sharpness", -0.166667)]
    assert found.total.better
    fewer = compare_rows(one, two.drop_columns(["rewards/sharpness"]))
    assert fewer.unpaired == ["sharpness"]


def test_other_prompts_and_other_noise_are_refused():
    rows = rows_of(6, np.zeros(6))
    with pytest.raises(UserError, match=r"of other prompts: they have 6 and 4 samples, and share 4; evaluate both"):
        compare_rows(rows, rows.slice(0, 4))
    with pytest.raises(UserError, match=r"^one and two are of other noise: 6 of 6 samples differ in it"):
        compare_rows(rows, rows_of(6, np.zeros(6), seed=2), ("one", "two"))
    place = rows.schema.get_field_index("prompt")
    renamed = rows.set_column(place, "prompt", pa.array(["another", *rows["prompt"].to_pylist()[1:]]))
    with pytest.raises(UserError, match="of other prompts: 1 of 6 samples differ in it, the first of them sample 0 of"):
        compare_rows(rows, renamed)


def test_the_command_says_which_is_better_and_fails_where_it_is_worse(tmp_path, capsys):
    run = write_run(tmp_path / "run", samples=60)
    first = str(run.rows(0))
    assert main(["compare", first, str(run.path)]) == 0
    said = capsys.readouterr().out
    assert said.strip().splitlines()[-1].startswith("B is significantly better: gain +0.")
    assert "total by tag" in said
    assert main(["compare", str(run.path), first]) == 1
    assert "B is significantly worse: gain -0." in capsys.readouterr().out
    assert main(["compare", first, first]) == 0
    assert "No significant difference: gain +0.0000, 95% interval +0.0000 to +0.0000" in capsys.readouterr().out
    assert main(["compare", str(run.path), first, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["worse"] is True
    assert found["total"]["samples"] == 60
    assert found["total"]["low"] < found["total"]["gain"] < found["total"]["high"] < 0
    assert {row["name"] for row in found["by_tag"]} == {"colors", "counting", "position"}


def test_the_command_refuses_what_cannot_be_paired(tmp_path, capsys):
    run = write_run(tmp_path / "run", samples=10)
    other = write_run(tmp_path / "other", samples=10, seed=2)
    assert main(["compare", str(run.path), str(other.path)]) == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert "are of other noise: 10 of 10 samples differ in it" in said
    assert main(["compare", str(run.path), str(tmp_path)]) == 2
    assert "holds no evaluation (evaluations/step-N.parquet)" in capsys.readouterr().err
