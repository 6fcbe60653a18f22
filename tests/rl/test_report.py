"""The page of a run: what it says, that text stays text, that it stays small, and that a run survives it."""

import json
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.run_folders import HOSTILE, noise, rows_of, write_run

from rl.cli import main
from rl.config.evaluation_sets import sets_of, trained_rewards
from rl.config.measured_from import MeasuredFrom
from rl.evaluation.look import look_at
from rl.records.rows import PICTURES, read_rows, write_rows, write_table
from rl.report.charts import Series, line_chart
from rl.report.page import render, top_share
from rl.report.pictures import PictureStore
from rl.report.run_data import read_run
from rl.report.sections import different_settings, duration, first_to_last, state_of, verdict
from rl.report.warnings import warnings_of
from rl.run.curves import smoothed


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "mine", samples=60)


@pytest.fixture(scope="module")
def data(run):
    return read_run(run.path)


def data_in(page: str) -> dict:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL)
    return json.loads(found)


def test_the_page_has_nine_sections_and_every_sample(data):
    page = render([data])
    sections = re.findall(r'<section id="(\w+)">', page)
    assert sections == [
        "verdict",
        "warnings",
        "curves",
        "scores",
        "gallery",
        "lens",
        "groups",
        "questions",
        "reproduce",
    ]
    found = data_in(page)
    assert [side["step"] for side in found["sides"]] == [0, 40]
    assert len(found["samples"]) == 60
    assert found["rewards"] == ["color", "sharpness"]
    assert len(set(found["pictures"])) == len(found["pictures"])
    assert "finished after update 40" in page
    assert "uniar-rl train mine.yaml" in page


def test_evaluations_have_no_curves(data):
    evaluated = replace(data, lines=[], scores={"metrics": {}, "samples_per_prompt": 1})
    for runs, expected in (
        ([evaluated], False),
        ([evaluated, evaluated], False),
        ([data], True),
        ([data, evaluated], True),
    ):
        page = render(runs)
        assert ('<section id="curves">' in page) == ('href="#curves"' in page) == expected


def test_text_stays_text(data):
    page = render([data])
    assert HOSTILE not in page
    assert page.count("<script") == 2
    assert "<img src=x" not in page
    assert [sample["prompt"] for sample in data_in(page)["samples"]].count(HOSTILE) == 1


def test_what_samples_wrote_is_shown(data):
    page = render([data])
    made = [sample["sides"][-1] for sample in data_in(page)["samples"]]
    assert [n for n, side in enumerate(made) if "w" in side] == [3, 4, 5, 7]
    assert made[3]["w"] == [HOSTILE]
    assert (made[4]["w"], made[4]["p"] is None) == (["it should be red", "now it is"], False)
    assert made[5]["p"] is None
    assert page.count('<p class="text">it should be red</p>') == 2  # of two updates' groups
    assert page.count('<div class="made alone"><p class="text">there are two of them') >= 2


def test_the_picture_asked_about_is_shown(data):
    page = render([data])
    found = data_in(page)
    assert [n for n, sample in enumerate(found["samples"]) if "s" in sample] == [6, 7]
    assert len({found["pictures"][sample["s"]] for sample in found["samples"] if "s" in sample}) == 2
    assert page.count("<figcaption>source</figcaption>") == 2  # of one prompt of two updates' groups


def test_nothing_is_fetched(data):
    page = render([data])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src &#39;none&#39;; img-src data:;")
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', page)


def test_pictures_are_kept_once_and_shrunk_to_the_budget():
    store = PictureStore()
    numbers = [store.add(noise(n % 20, 256)) for n in range(40)]
    assert numbers == [*range(20), *range(20)]
    assert store.add(None) is None
    whole = sum(map(len, store.fitted()))
    assert sum(map(len, store.fitted(whole // 4))) <= whole // 4
    few = store.fitted(3000)
    assert few[0]
    assert few[-1] == ""
    assert sum(map(len, few)) <= 3000


def test_several_runs_are_compared(run, data, tmp_path):
    other = read_run(write_run(tmp_path / "other", samples=60, rise=0.5, rate=3e-4).path)
    page = render([data, other])
    assert [side["label"] for side in data_in(page)["sides"]] == ["mine", "other"]
    assert "mine against other" in page
    assert different_settings([data, other]) == [("trainer.learning_rate", ["0.0001", "0.0003"])]


def test_runs_with_other_noise_are_not_paired(data, tmp_path):
    other = read_run(write_run(tmp_path / "other", samples=60, seed=2).path)
    page = render([data, other])
    assert "Not paired: mine and other are of other noise: 60 of 60" in page
    assert "The runs cannot be shown side by side" in page
    assert [side["step"] for side in data_in(page)["sides"]] == [0, 40]


def test_warnings_in_plain_words(data):
    gain = first_to_last(data).total
    said = " ".join(warnings_of(data, gain))
    assert "60% of the groups had no differences" in said
    assert "The reward color failed on 40 training samples" in said
    assert "set otherwise than training ones (other rewards" in said
    assert "while the held-out total did not" not in said
    flat = replace(gain, gain=0.0, low=-0.1, high=0.1, p=1.0)
    assert "The training reward rose by" in " ".join(warnings_of(data, flat))
    fell = replace(gain, gain=-0.3, low=-0.4, high=-0.2, p=1e-4)
    assert "fell by 0.3, which is more than chance" in " ".join(warnings_of(data, fell))


def test_why_kl_begins_above_0_where_the_reference_draws_otherwise(data):
    first = next(line["kl"] for line in data.training if "kl" in line)
    limited = replace(data.recipe, watch=replace(data.recipe.watch, kl_limit=first / 100))
    algorithm = replace(limited.algorithm, reference=MeasuredFrom(guidance_scale=7.0))
    for recipe, otherwise in ((limited, False), (replace(limited, algorithm=algorithm), True)):
        run = replace(data, recipe=recipe)
        (kl,) = [value for name, value in verdict(run, None)["facts"] if name == "KL to the reference"]
        (said,) = [line for line in warnings_of(run, first_to_last(run).total) if "watch.kl_limit" in line]
        assert (f"it began at {first:.2e}, not 0, because algorithm.reference draws otherwise" in kl) == otherwise
        assert ("It begins above 0, because algorithm.reference draws otherwise" in said) == otherwise


def test_what_state_a_run_is_in(data):
    assert state_of(replace(data, finished=None, running=False)) == "stopped after update 40 of 40, not finished"
    half = replace(data, finished=None, running=True, lines=[line for line in data.lines if line["step"] <= 20])
    assert state_of(half) == "running: update 20 of 40, about 80 s left"
    assert [duration(seconds) for seconds in (3, 89, 200, 8000)] == ["3 s", "89 s", "3 min", "2 h 13 min"]


def test_an_evaluation_alone_has_a_page(tmp_path, capsys):
    whole = write_run(tmp_path / "whole", samples=12)
    alone = tmp_path / "scores"
    (alone / "evaluations").mkdir(parents=True)
    (alone / "evaluations" / "step-000000.parquet").write_bytes(whole.rows(40).read_bytes())
    assert main(["report", str(alone)]) == 0
    assert "report.html" in capsys.readouterr().out
    assert len(data_in((alone / "report.html").read_text())["samples"]) == 12


def test_what_is_no_run_is_refused(tmp_path, capsys):
    for folder, said in ((tmp_path, "holds neither a run"), (tmp_path / "none", "is not a folder")):
        assert main(["report", str(folder)]) == 2
        assert said in capsys.readouterr().err


def test_a_prompt_or_question_that_was_edited_is_not_compared_with_the_last(tmp_path):
    """As after a resume with other files: the ids, the noise and the lengths are the same."""
    run = write_run(tmp_path / "edited", samples=12)
    first = read_rows(run.rows(0))
    edited = pa.array(["a red squre", *first["prompt"].to_pylist()[1:]])
    write_rows(run.rows(0), first.set_column(first.schema.get_field_index("prompt"), "prompt", edited), 0)
    for step in range(0, 41, 10):
        file = run.evaluations / f"step-{step:06d}.json"
        said = {"held_out": {"total": "a", "understanding": "old" if step < 20 else "new"}}
        file.write_text(json.dumps(json.loads(file.read_text()) | said))
    data = read_run(run.path)
    assert data.steps == [10, 20, 30, 40]
    assert list(data.answers) == [20, 30, 40]
    assert data_in(render([data]))["sides"][0]["step"] == 10


def test_a_run_that_kept_no_pictures_has_a_page(tmp_path):
    run = write_run(tmp_path / "bare", samples=12)
    for file in [*run.evaluations.glob("*.parquet"), *run.groups.iterdir()]:
        rows = pq.read_table(file)
        for name in {*PICTURES} & {*rows.column_names}:
            rows = rows.set_column(rows.schema.get_field_index(name), name, pa.nulls(len(rows), pa.binary()))
        write_table(file, rows)
    page = render([read_run(run.path)])
    assert data_in(page)["pictures"] == []
    assert "data-picture" not in page.replace("img[data-picture]", "")
    assert len(data_in(page)["samples"]) == 12


def test_copies_beside_the_files_are_no_evaluations(tmp_path):
    run = write_run(tmp_path / "copied", samples=12)
    expected = read_run(run.path)
    for folder in (run.evaluations, run.groups):
        for file in [*folder.glob("step-000040.*")]:
            file.with_name(f"{file.stem} copy{file.suffix}").write_bytes(file.read_bytes())
    found = read_run(run.path)
    assert (found.steps, found.answers, found.groups) == (expected.steps, expected.answers, expected.groups)


@pytest.mark.parametrize("name", ["evaluations/step-000000", "evaluations/questions", "groups/step-000040"])
def test_what_is_damaged_is_left_out_and_named(name, tmp_path, caplog):
    run = write_run(tmp_path / "damaged", samples=12)
    file = run.path / f"{name}.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    page = render([read_run(run.path)])
    assert str(file) in caplog.text
    assert "finished after update 40" in page


def test_evaluations_with_other_rewards_are_not_compared(tmp_path, capsys):
    run = write_run(tmp_path / "other", samples=12)
    rows = read_rows(run.rows(0))
    names = [f"{name}_of_old" if name.startswith("rewards/") else name for name in rows.column_names]
    write_rows(run.rows(0), rows.rename_columns(names), 0)
    assert 0 not in read_run(run.path).steps
    assert main(["compare", str(run.rows(0)), str(run.path)]) == 0
    said = capsys.readouterr().out
    assert "No sample has a total of the same rewards in both." in said
    assert "scored in one of the two only: color, color_of_old, sharpness, sharpness_of_old" in said


def test_what_a_reward_says_is_shown_without_addresses_and_paths(tmp_path):
    run = write_run(tmp_path / "judged", samples=12)
    rows = read_rows(run.rows(40))
    said = json.dumps({"color": {"why": "http://10.0.0.7:8000/v1 read /home/ada/judge.txt: it is red"}})
    write_rows(run.rows(40), rows.set_column(rows.schema.get_field_index("details"), "details", [[said] * 12]), 40)
    page = render([read_run(run.path)])
    assert "it is red" in page
    assert "10.0.0.7" not in page
    assert "ada" not in page


def test_the_lens_sees_blur_and_copies():
    rows = rows_of(20, np.zeros(20), pictures=20)
    same = rows_of(20, np.zeros(20), pictures=1)
    sharp, copied = look_at(rows), look_at(same)
    assert (sharp.duplicates, copied.duplicates) == (0, 18)  # two of them drew nothing
    assert copied.spread < 1e-3 < sharp.spread
    assert look_at(rows.slice(0, 0)) is None
    assert top_share([0.1, None, 0.9, 0.5], least=2) == [2, 3]


def test_rewards_that_are_not_trained_on(data):
    (own,) = sets_of(data.recipe).values()
    assert trained_rewards(own) == {"color"}
    other = [{"use": "color", "color": "blue"}]  # of the same name, and set otherwise
    assert trained_rewards(replace(own, eval_rewards=other)) == set()
    page = render([data])
    assert "sharpness" in page[page.index('id="lens"') :]


def test_curves_are_smoothed_and_labelled_as_text():
    assert smoothed([0.0, 3.0, 0.0, 3.0]) == [1.5, 1.0, 2.0, 1.5]
    chart = line_chart("a <b> & c", [Series("<i>", range(2000), [float(x % 7) for x in range(2000)])])
    assert "&lt;b&gt; &amp; c" in chart
    assert len(chart) < 12_000
    assert line_chart("nothing", [Series("x", [], [])]) == ""
