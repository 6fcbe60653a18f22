import dataclasses
import errno
import fcntl
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from rl.checkpoint.folder_lock import FolderLock
from rl.config.model import ModelSection
from rl.config.sections import DataSection, Recipe
from rl.data.prompts import PromptRecord
from rl.evaluation.evaluate import Evaluation, Shown
from rl.evaluation.understanding import Understanding
from rl.run.folder import RunFolder
from rl.run.pictures import sample_grid
from uniar.errors import UserError


def recipe_into(folder) -> Recipe:
    return Recipe(
        model=ModelSection(preset="nano"),
        data=DataSection(prompts="prompts.jsonl"),
        rewards=[{"use": "compressibility"}],
        output_dir=str(folder),
    )


def test_a_folder_belongs_to_one_run(tmp_path):
    recipe = recipe_into(tmp_path / "run")
    first = RunFolder.claim(recipe)
    assert first.config.read_text() == recipe.to_yaml()
    with pytest.raises(UserError, match="holds another run"):
        RunFolder.claim(recipe)
    assert RunFolder.claim(recipe, resume=True).path == first.path


def test_a_folder_is_held_by_one_run_at_a_time(tmp_path):
    recipe = recipe_into(tmp_path / "run")
    with FolderLock() as lock:
        RunFolder.claim(recipe, lock=lock)
        held = RunFolder(tmp_path / "run").config.read_text()
        changed = dataclasses.replace(recipe, seed=7)
        with (
            pytest.raises(UserError, match="run is in use: a process of another run trains into it"),
            FolderLock() as other,
        ):
            RunFolder.claim(changed, resume=True, lock=other)
        assert RunFolder(tmp_path / "run").config.read_text() == held
    with FolderLock() as other:
        RunFolder.claim(changed, resume=True, lock=other)


def test_a_killed_run_holds_nothing(tmp_path):
    (tmp_path / "run").mkdir()
    hold = "import sys, time; from pathlib import Path\n"
    hold += "from rl.checkpoint.folder_lock import FolderLock; lock = FolderLock()\n"
    hold += "lock.take(Path(sys.argv[1])); print('held', flush=True); time.sleep(100)"
    process = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with FolderLock() as lock:
        with pytest.raises(UserError, match="is in use"):
            lock.take(tmp_path / "run")
        process.kill()
        process.communicate()
        lock.take(tmp_path / "run")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK], ids=errno.errorcode.get)
def test_a_file_system_without_locks_holds_nothing(tmp_path, monkeypatch, caplog, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    for lock in [FolderLock(), FolderLock()]:  # the first lets go of nothing, as if it had been killed
        lock.take(tmp_path)
    assert "without locks" in caplog.text


def test_a_recipe_without_a_folder_gets_a_new_one_each_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = dataclasses.replace(recipe_into("runs/mine"), source="configs/mine.yaml")
    assert [str(RunFolder.claim(recipe).path) for _ in range(3)] == ["runs/mine", "runs/mine-2", "runs/mine-3"]
    assert "output_dir: runs/mine-3" in RunFolder("runs/mine-3").config.read_text()
    assert str(RunFolder.claim(recipe, resume=True).path) == "runs/mine-3"
    named = dataclasses.replace(recipe, origins={("output_dir",): "the command line"})  # though it is what it would be
    assert str(RunFolder.claim(named, resume=True).path) == "runs/mine"
    with pytest.raises(UserError, match="runs/mine holds another run"):
        RunFolder.claim(named)


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        RunFolder.claim(recipe_into(tmp_path / "file" / "run"))


def test_metrics_are_json_even_where_they_are_not_numbers(tmp_path):
    folder = RunFolder.claim(recipe_into(tmp_path / "run"))
    folder.append(1, {"reward": 0.5, "kl": math.nan})
    folder.append(2, {"reward": 0.75})
    folder.append(2, {"eval_reward": 0.7})
    folder.append(3, {"reward": 0.8})
    assert folder.read()[0] == {"step": 1, "reward": 0.5, "kl": None}
    folder.forget_after(2)
    assert [line["step"] for line in folder.read()] == [1, 2, 2]
    with folder.metrics.open("a") as file:
        file.write('{"step": 3, "rew')
    assert [line["step"] for line in folder.read()] == [1, 2, 2]
    folder.forget_after(1)
    assert folder.metrics.read_text() == '{"step": 1, "reward": 0.5, "kl": null}\n'


def test_a_resumed_run_leaves_no_evaluation_behind_that_it_may_not_make_again(tmp_path):
    folder = RunFolder.claim(recipe_into(tmp_path / "run"))
    for step in (10, 20):
        (folder.evaluations / f"step-{step:06d}.json").write_text('{"total": [0.5]}')
        (folder.evaluations / f"step-{step:06d}.parquet").touch()
        (folder.groups / f"step-{step:06d}.parquet").touch()
        (folder.samples / f"step-{step:06d}.png").touch()
    (folder.samples / "mine.png").touch()
    folder.best.mkdir()
    folder.note_best(10)
    folder.forget_after(10)
    assert folder.best.exists()
    folder.note_best(20)
    folder.forget_after(10)
    assert not folder.best.exists()
    assert not folder.best_step.exists()
    assert set(folder.evaluated_totals()) == {10}
    kept = sorted(file.name for file in (*folder.evaluations.iterdir(), *folder.samples.iterdir()))
    assert kept == ["mine.png", "step-000010.json", "step-000010.parquet", "step-000010.png"]
    assert [file.name for file in folder.groups.iterdir()] == ["step-000010.parquet"]


def test_a_process_that_is_killed_leaves_what_is_known_of_the_best_model(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.note_best(10)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.note_best(20)
    assert json.loads(folder.best_step.read_text()) == {"step": 10}


def test_an_evaluation_and_the_questions_of_its_step_share_a_file(tmp_path):
    folder = RunFolder.claim(recipe_into(tmp_path / "run"))
    scores = torch.tensor([[1.0], [math.nan]], dtype=torch.float64)
    folder.save_evaluation(2, Evaluation(("red",), scores, scores[:, 0], [], 0.1), None)
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    folder.save_evaluation(2, None, Understanding(["yes", "no"], half, half, half, 0.1))
    folder.save_evaluation(4, None, Understanding(["yes", "no"], 2 * half, half, half, 0.1))
    kept = json.loads((folder.evaluations / "step-000002.json").read_text())
    assert (kept["total"], kept["red"], kept["understanding"]["answers"]) == ([1.0, None], [1.0, None], ["yes", "no"])
    assert list(folder.evaluated_totals()) == [2]
    assert {step: means["exact_match"] for step, means in folder.evaluated_understanding().items()} == {2: 0.5, 4: 1.0}


def test_grid_shows_every_tile(tmp_path):
    red, blue = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 128), "blue")
    square, long = PromptRecord("a red square"), PromptRecord("a very long prompt " * 20)
    tiles = [Shown(square, red, 0.25), Shown(long, blue, math.nan), Shown(square, None, 1.0, ("it is red", "yes"))] * 2
    sample_grid(tiles, tmp_path / "deep" / "grid.png")
    with Image.open(tmp_path / "deep" / "grid.png") as sheet:
        colours = {sheet.getpixel((x, y)) for x in range(0, sheet.width, 20) for y in range(0, sheet.height, 20)}
        written = sheet.crop((408, 8, 600, 200)).convert("L")  # the third, which has no image
    assert {(255, 0, 0), (0, 0, 255), (255, 255, 255)} <= colours
    assert min(written.crop((2, 2, 190, 40)).tobytes()) < 64  # two turns, a line each
    assert min(written.crop((2, 40, 190, 190)).tobytes()) == 255
