"""What a run has left on the disk and is damaged: empty, cut, not JSON, of another type. Each file is named, and what
can be made again, or done without, does not stop the run that goes on."""

import hashlib
import json
import logging
import math
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from support.training_runs import changed, run, small_recipe, weights

from rl.checkpoint.folders import fault, saved_step
from rl.config.recipe import recipe_from_mapping
from rl.config.sections import EarlyStopSection
from rl.data.prompts import PromptRecord
from rl.data.questions import load_questions
from rl.export.model_card import _understanding
from rl.policy.prompt_stream import PromptStream
from rl.run.data_state import data_state, measured_on, told_by
from rl.run.finished import report
from rl.run.folder import RunFolder
from rl.run.records import read_evaluation, read_lines
from rl.trainer.extensions.early_stop import EarlyStop
from rl.trainer.extensions.kl_control import KLControl
from uniar.errors import UserError
from uniar.reading.files import unfinished_path

MINIMAL = {
    "model": {"preset": "nano"},
    "data": {"prompts": "p.jsonl"},
    "evaluate": {"prompts": "h.jsonl"},
    "rewards": [{"use": "color", "color": "red"}],
}
DAMAGED = {
    "empty": b"",
    "cut": b'{"total": [0.5, 0.',
    "not JSON": b"total: 0.5",
    "not UTF-8": b'{"total": "\xff\xfe"}',
    "a list": b"[1]",
    "nothing in it": b"{}",
    "null": b"null",
    "a text": b'{"total": "0.5"}',
    "texts": b'{"total": ["0.5"]}',
    "no samples": b'{"total": []}',
    "answers of another kind": b'{"total": [0.5], "understanding": [1]}',
    "answers without scores": b'{"understanding": {"answers": ["yes"], "exact_match": [1]}}',
    "deep": b"[" * 100_000,
}


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.take()
    return run


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_evaluation_is_left_out_and_named(folder, caplog, capsys, content):
    for step in (0, 4):
        (folder.evaluations / f"step-{step:06d}.json").write_text('{"total": [0.5, null]}')
    damaged = folder.evaluations / "step-000002.json"
    damaged.write_bytes(content)
    assert read_evaluation(damaged) is None
    assert str(damaged) in caplog.text
    assert set(folder.evaluated_totals()) == {0, 4}
    assert not folder.evaluated_understanding()
    report(folder)
    assert "held-out reward: 0.5000 -> 0.5000" in capsys.readouterr().out
    folder.forget_after(4)
    assert not damaged.exists()
    assert len(list(folder.evaluations.iterdir())) == 2


def test_scores_that_are_not_there_are_read_as_nan(folder):
    """What the writer writes for NaN in any column is not damage."""
    columns = {"answers": ["a", "b"], "exact_match": [1, 0], "p_answer": [None, 0.5], "p_token": [None, None]}
    for step in (0, 2):
        found = {"total": [None, None], "ocr": [None, 1.0], "understanding": columns}
        (folder.evaluations / f"step-{step:06d}.json").write_text(json.dumps(found))
    folder.forget_after(2)
    assert len(list(folder.evaluations.iterdir())) == 2
    means = folder.evaluated_understanding()[2]
    assert means["exact_match"] == 0.5
    assert math.isnan(means["p_answer"])
    assert folder.evaluated_totals()[0].isnan().all()
    _, (exact, answer, token) = _understanding(folder, None)
    assert (exact.after, answer.after, answer.before) == (0.5, 0.5, 0.5)
    assert math.isnan(token.after)


def test_evaluations_of_other_samples_are_not_compared(folder, capsys):
    for step, found in {
        0: {"total": [0.1, 0.2, 0.3]},
        1: {"total": [0.4, 0.4], "held_out": {"total": "aa"}},
        2: {"total": [0.9, 0.9], "held_out": {"total": "bb"}},
        3: {"total": [1.0, 0.8], "held_out": {"total": "bb"}},
    }.items():
        (folder.evaluations / f"step-{step:06d}.json").write_text(json.dumps(found))
    assert set(folder.evaluated_totals()) == {2, 3}
    report(folder)
    assert "held-out reward: 0.9000 -> 0.9000" in capsys.readouterr().out
    (folder.evaluations / "step-000002.json").unlink()
    report(folder)
    assert capsys.readouterr().out.endswith("held-out reward: 0.9000\n")  # of a single one there is no change


def test_evaluations_of_a_version_that_kept_less_are_compared_by_their_samples(folder):
    for step, data in {0: "bb", 1: "aa", 2: "aa" + "m1", 3: "aa" + "m2", 4: "aa" + "m2"}.items():
        content = {"total": [0.1, 0.2], "held_out": {"total": data}}
        (folder.evaluations / f"step-{step:06d}.json").write_text(json.dumps(content))
    assert set(folder.evaluated_totals()) == {1, 3, 4}


def test_evaluations_that_were_drawn_or_scored_otherwise_are_not_compared():
    held_out = [PromptRecord("a red circle", None, {}, None, "1")]

    def made_on(**sections):
        return measured_on(data_state(recipe_from_mapping({**MINIMAL, **sections}), [], held_out, [], []))

    same = {"seed": 3, "algorithm": {"beta": 0.5}, "decode": {"batch_size": 1}, "trainer": {"max_steps": 9}}
    assert made_on(**same) == made_on()
    for sections in (
        {"rewards": ["sharpness"]},
        {"eval_rewards": [{"use": "color", "color": "red", "weight": 2}]},
        {"evaluate": {"prompts": "h.jsonl", "temperature": 0.5}},
        {"evaluate": {"prompts": "h.jsonl", "seed": 1}},
        {"evaluate": {"prompts": "h.jsonl", "samples_per_prompt": 2}},
        {"evaluate": {"sets": {"one": {"prompts": "h.jsonl"}}}},
        {"decode": {"num_inference_steps": 3}},
        {"rollout": {"height": 64}},
    ):
        other = made_on(**sections)
        assert other["total"] != made_on()["total"], sections
        assert other["understanding"] == made_on()["understanding"]


def test_evaluations_by_a_reward_whose_module_was_renamed_are_compared():
    held_out = [PromptRecord("a red circle", None, {}, None, "1")]

    def made_on(use: str, *, named_so: bool):
        recipe = recipe_from_mapping({**MINIMAL, "rewards": [{"use": use, "name": "shapes", "credit": "partial"}]})
        if named_so:  # as a version that knew no other name kept it
            recipe = replace(recipe, rewards=[{**entry, "use": use} for entry in recipe.rewards])
        return measured_on(data_state(recipe, [], held_out, [], []))

    before = made_on("tiny.shapes:Shapes", named_so=True)
    assert before == made_on("tiny.shapes:Shapes", named_so=False) == made_on("rl.tiny.shapes:Shapes", named_so=True)
    assert before != made_on("own.shapes:Shapes", named_so=True)


@pytest.mark.parametrize(
    "line", [b"", b'{"reward": 1}', b"[1]", b'{"step": "2"}', b"\xff", b'{"step": 2, "re', b'{"step": true}', b"null"]
)
def test_lines_that_are_none_are_left_out(folder, caplog, line):
    folder.metrics.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n{"step": 4, "rewa')
    assert [found["step"] for found in read_lines(folder.metrics)] == [1, 3]
    assert f"{folder.metrics}, line 2 is left out" in caplog.text
    folder.forget_after(3)
    assert folder.metrics.read_text() == '{"step": 1}\n{"step": 3}\n'


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"step": null}', '{"step": "x"}', '{"step": 1e999}'])
def test_what_does_not_say_which_update_the_best_model_is_of(folder, caplog, content):
    folder.best.mkdir()
    folder.best_step.write_text(content)
    folder.forget_after(5)
    assert folder.best.exists()
    assert not folder.best_step.exists()
    assert str(folder.best_step) in caplog.text


def test_what_a_killed_writer_left_is_cleared_away(folder):
    for part in (folder.path, folder.evaluations, folder.samples):
        unfinished_path(part / "metrics.json", 2**22 + 1).write_text("half")
    folder.forget_after(1)
    assert not list(folder.path.rglob("*.partial"))


@pytest.mark.parametrize(
    ("callback", "content"),
    [
        (KLControl(None, 0.1), "[]"),
        (KLControl(None, 0.1), '{"beta": "much"}'),
        (PromptStream([], 1, shuffle=False, seed=0), "{}"),
        (PromptStream([], 1, shuffle=False, seed=0), '{"position": null}'),
        (EarlyStop(EarlyStopSection()), '{"best": [], "best_step": 1, "without_improvement": 0}'),
        (EarlyStop(EarlyStopSection()), ""),
    ],
)
def test_a_state_that_is_none_is_named(tmp_path, callback, content):
    callback.place(tmp_path).write_text(content)
    with pytest.raises(UserError, match=str(callback.place(tmp_path))):
        callback.load(tmp_path)


@pytest.mark.parametrize("content", ["", '{"global_step": 3', "[]", '{"global_step": "3", "log_history": []}', "{}"])
def test_a_state_of_the_trainer_that_is_none_is_named(tmp_path, content):
    (tmp_path / "trainer_state.json").write_text(content)
    with pytest.raises(UserError, match=r"trainer_state\.json"):
        saved_step(tmp_path)


def test_a_run_goes_on_with_every_record_damaged(nano_checkpoint, tmp_path, caplog):
    """As a run that nothing has happened to, but for the first evaluation, which cannot be made again."""
    (tmp_path / "held_out.jsonl").write_text('{"prompt": "a red circle"}\n{"prompt": "a blue circle"}\n')
    settings = changed(
        small_recipe(nano_checkpoint, tmp_path),
        evaluate={"prompts": str(tmp_path / "held_out.jsonl"), "every": 1, "early_stop": {}},
        trainer={"save_steps": 1},
    )
    whole = run(settings, output_dir=str(tmp_path / "whole"))
    broken = RunFolder(shutil.copytree(whole.path, tmp_path / "run"))
    shutil.rmtree(broken.final)
    broken.finished.write_text("{")
    broken.config.write_text(broken.config.read_text()[:100])
    broken.data.write_text("")
    broken.best_step.write_text("")
    (broken.evaluations / "step-000000.json").write_text("")
    (broken.evaluations / "step-000003.json").write_text('{"total": [')
    broken.metrics.write_text("\n" + broken.metrics.read_text()[:-30])
    broken.details.write_bytes(b'{"step": 1}\n\xff\n{"step": 2}')
    for damage, name in ((b"", "trainer_state.json"), (b"{", "early_stop.json")):
        assert (broken.path / "checkpoint-3" / name).exists()
        (broken.path / "checkpoint-3" / name).write_bytes(damage)
    caplog.set_level(logging.WARNING)
    again = run(settings, resume=True)  # from checkpoint-2
    assert fault(broken.path / "checkpoint-3") is None
    assert [line["step"] for line in again.read() if "reward" in line] == [1, 2, 3]
    assert set(again.evaluated_totals()) == {1, 2, 3}
    for step in (1, 2, 3):
        assert torch.equal(again.evaluated_totals()[step], whole.evaluated_totals()[step])
    assert all(torch.equal(tensor, weights(again.final)[name]) for name, tensor in weights(whole.final).items())
    assert again.config.read_text() == whole.config.read_text().replace(str(whole.path), str(again.path))
    for named in ("checkpoint-3 is passed over", "config.yaml was cut short", "step-000000.json", "best.json"):
        assert named in caplog.text


@pytest.mark.parametrize(
    "listed",
    [
        {},
        None,
        [],
        "model.safetensors",
        {"model.safetensors": None},
        {"model.safetensors": {"bytes": "7"}},
        {"model.safetensors": {"bytes": 7}},
        {"model.safetensors": {"sha256": "0"}},
        {"../outside": {"bytes": 7, "sha256": "0"}},
        {"/etc/passwd": {"bytes": 7, "sha256": "0"}},
        {"": {"bytes": 7, "sha256": "0"}},
        {"\0": {"bytes": 7, "sha256": "0"}},
        {"a" * 5000: {"bytes": 7, "sha256": "0"}},
    ],
)
def test_a_manifest_that_is_none_seals_nothing(tmp_path, listed):
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    for file in (folder / "model.safetensors", tmp_path / "outside"):
        file.write_bytes(b"weights")
    (folder / "manifest.json").write_text(json.dumps({"files": listed} if listed is not None else {}))
    assert fault(folder) is not None


def test_data_is_the_same_wherever_it_lies(tmp_path):
    told = []
    for place, answer, size in (("here", "yes", 8), ("there", "yes", 8), ("here", "no", 8), ("here", "yes", 9)):
        (tmp_path / place).mkdir(exist_ok=True)
        Image.new("RGB", (size, 8)).save(tmp_path / place / "a.bmp")
        (tmp_path / place / "asked.jsonl").write_text(
            json.dumps({"image": "a.bmp", "question": "red?", "answer": answer}) + "\n"
        )
        told.append(told_by(load_questions(tmp_path / place / "asked.jsonl")))
    prompts = [PromptRecord("a", image="data:image/png;base64," + "A" * 5000), PromptRecord("b", metadata={"n": 1})]
    told += [told_by(prompts), told_by(prompts[::-1])]
    assert told[0] == told[1]
    assert len({entry["sha256"] for entry in told}) == 5


def test_a_field_that_records_came_to_have_changes_nothing_where_it_is_not_set():
    """The hash of an earlier version, of a record as it was then; without it, no run of that version goes on."""
    record = PromptRecord("a red circle", "colors", {"n": 1}, None, "7")
    then = {"prompt": "a red circle", "task": "colors", "metadata": {"n": 1}, "image": None, "id": "7"}
    line = json.dumps(then, sort_keys=True).encode() + b"\n"
    assert told_by([record])["sha256"] == hashlib.sha256(line).hexdigest()
    assert told_by([replace(record, size=(64, 64))]) != told_by([record])
