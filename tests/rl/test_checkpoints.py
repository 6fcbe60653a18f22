import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from rl.checkpoint.folders import checkpoints, fault, looked_at, newest_good, publish, rotate, shares, writing
from rl.checkpoint.layout import MANIFEST, SAVING
from uniar.errors import UserError


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


ZERO = [f"global_step1/bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(4)]
RANDOM = [f"rng_state_{rank}.pth" for rank in range(4)]
OTHERS = {"model-1.safetensors": 50, "model-2.safetensors": 40, "global_step1/mp_rank_00_model_states.pt": 30, "a": 2}


@pytest.mark.parametrize("processes", [1, 2, 4, 7])
def test_processes_look_at_what_they_wrote_and_share_the_rest(tmp_path, processes):
    folder = tmp_path / SAVING / "checkpoint-1"
    (folder / "global_step1").mkdir(parents=True)
    sizes = dict.fromkeys(ZERO, 100) | dict.fromkeys(RANDOM, 1) | OTHERS
    for name, size in sizes.items():
        (folder / name).write_bytes(os.urandom(size))
    shared = shares(folder, processes)
    assert sorted(name for own in shared for name in own) == sorted(sizes)
    for rank in range(min(4, processes)):
        assert {ZERO[rank], RANDOM[rank]} <= set(shared[rank])
    loads = [sum(sizes[name] for name in own) for own in shared]
    assert max(loads) <= {1: 526, 2: 276, 4: 152, 7: 101}[processes]
    files = {name: found for own in reversed(shared) for name, found in looked_at(folder, own).items()}
    place = publish(tmp_path, folder.name, files)
    assert fault(place) is None
    assert list(json.loads((place / MANIFEST).read_text())["files"]) == sorted(sizes)
    (place / ZERO[0]).write_bytes(b"x" * 100)
    assert "not what was written" in fault(place)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "5 bytes instead of 700"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"weighty" * 100), "not what was written"),
        (lambda folder: (folder / "deep" / "state.pt").unlink(), "deep/state.pt is missing"),
        (lambda folder: (folder / MANIFEST).unlink(), "never finished"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "cannot be read"),
        (lambda folder: (folder / MANIFEST).write_text("[]"), "lists no files"),
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
    newest = tmp_path / "checkpoint-100"
    rotate(tmp_path, None, newest)
    assert len(checkpoints(tmp_path)) == 3
    rotate(tmp_path, 2, newest)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-100"]
    rotate(tmp_path, 0, newest)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-100"]


def test_rotation_never_takes_the_last_good_one(tmp_path):
    """A run that went on from before a damaged checkpoint reaches smaller steps than its."""
    written(tmp_path, 50)
    (written(tmp_path, 100) / "model.safetensors").unlink()
    rotate(tmp_path, 1, written(tmp_path, 60))
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-60", "checkpoint-100"]
    assert newest_good(tmp_path).name == "checkpoint-60"
    rotate(tmp_path, 1, written(tmp_path, 100))
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-100"]
    assert newest_good(tmp_path).name == "checkpoint-100"


@pytest.fixture
def other_disk():
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no second file system here")
def test_checkpoints_on_another_disk(tmp_path, other_disk):
    assert other_disk.stat().st_dev != tmp_path.stat().st_dev
    run = tmp_path / "run"
    run.symlink_to(other_disk)
    first, second = written(run, 1), written(run, 2)
    # Someone made room: the first is elsewhere, and linked.
    moved = tmp_path / "moved"
    shutil.move(first.resolve(), moved)
    first.symlink_to(moved)
    shutil.rmtree(second)
    assert newest_good(run) == first
    rotate(run, 1, written(run, 2))
    assert [folder.name for folder in checkpoints(run)] == ["checkpoint-2"]
    assert fault(moved) is None  # it is not ours any longer


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no second file system here")
def test_a_folder_for_saving_on_another_disk_is_named(tmp_path, other_disk):
    """A checkpoint that is copied to its place, not renamed, could be cut short there."""
    good = written(tmp_path, 1)
    (tmp_path / SAVING).symlink_to(other_disk)
    with (
        pytest.raises(
            UserError, match=r"checkpoint of step 2 could not be written to .*GB free there\): .*cross-device"
        ),
        writing(tmp_path, 2),
    ):
        written(tmp_path, 2)
    assert checkpoints(tmp_path) == [good]
    assert newest_good(tmp_path) == good


def test_only_failures_to_write_are_called_so(tmp_path):
    for error in (RuntimeError("gloo: connection closed by peer"), KeyError("x")):
        with pytest.raises(type(error)), writing(tmp_path, 1):
            raise error


def test_nothing_to_resume(tmp_path):
    assert newest_good(tmp_path) is None
