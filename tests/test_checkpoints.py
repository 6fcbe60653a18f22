import json
import shutil

import pytest

from rl.checkpoints import MANIFEST, SAVING, checkpoints, fault, newest_good, publish, rotate


def written(run, step):
    folder = run / SAVING / f"checkpoint-{step}"
    (folder / "deep").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights" * 100)
    (folder / "deep" / "state.pt").write_bytes(b"state")
    return publish(run, folder.name)


def test_published_checkpoint_is_whole(tmp_path):
    folder = written(tmp_path, 5)
    assert folder == tmp_path / "checkpoint-5"
    assert fault(folder) is None
    assert set(json.loads((folder / MANIFEST).read_text())["files"]) == {"model.safetensors", "deep/state.pt"}
    assert not (tmp_path / SAVING).exists()
    assert newest_good(tmp_path) == folder


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "5 bytes instead of 700"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"weighty" * 100), "not what was written"),
        (lambda folder: (folder / "deep" / "state.pt").unlink(), "deep/state.pt is missing"),
        (lambda folder: (folder / MANIFEST).unlink(), "never finished"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "cannot be read"),
        (lambda folder: (folder / MANIFEST).write_text("[]"), "cannot be read"),
    ],
)
def test_damaged_checkpoint_is_named_and_passed_over(tmp_path, caplog, damage, words):
    good, newer = written(tmp_path, 9), written(tmp_path, 10)
    damage(newer)
    assert words in fault(newer)
    assert newest_good(tmp_path) == good
    assert "checkpoint-10 is passed over" in caplog.text
    assert words in caplog.text


def test_a_save_that_was_cut_short_is_no_checkpoint(tmp_path):
    good = written(tmp_path, 1)
    shutil.copytree(good, tmp_path / SAVING / "checkpoint-2")
    assert newest_good(tmp_path) == good
    assert checkpoints(tmp_path) == [good]


def test_a_step_saved_again_replaces_the_first(tmp_path):
    first = written(tmp_path, 3)
    (first / "stale").write_text("")
    assert not (written(tmp_path, 3) / "stale").exists()


def test_rotation_keeps_the_newest(tmp_path):
    for step in (9, 10, 100):
        written(tmp_path, step)
    (tmp_path / "checkpoint-notes").mkdir()
    rotate(tmp_path, None)
    assert len(checkpoints(tmp_path)) == 3
    rotate(tmp_path, 2)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-100"]
    rotate(tmp_path, 0)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-100"]


def test_nothing_to_resume(tmp_path):
    assert newest_good(tmp_path) is None
