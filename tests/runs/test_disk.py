"""Runs whose disk is full, cannot be written, or is another one: a clear error, and what was complete stays so."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from safetensors import SafetensorError
from support.full_disk import NAMESPACE, SmallDisk, files_no_larger_than
from support.training_runs import ROOT, changed, run, small_recipe

import rl.run.finished
import rl.train
import rl.trainer.callbacks
from rl.checkpoint.disk_errors import failure_within, write_failure
from rl.checkpoint.folders import checkpoints, fault, newest_good
from rl.checkpoint.layout import SAVING
from rl.cli import main
from rl.run.folder import RunFolder
from rl.trainer.trainer import UniARTrainer
from uniar.errors import UserError


@pytest.fixture
def settings(nano_checkpoint: Path, tmp_path: Path) -> dict:
    recipe = small_recipe(nano_checkpoint, tmp_path)
    return changed({**recipe, "resume": "auto"}, trainer={"max_steps": 2, "save_steps": 1})


def require_unharmed(settings: dict) -> None:
    """The first update's checkpoint is whole."""
    (checkpoint,) = checkpoints(Path(settings["output_dir"]))
    assert checkpoint.name == "checkpoint-1"
    assert fault(checkpoint) is None


def require_it_goes_on(settings: dict) -> None:
    """When there is room again, from that checkpoint."""
    folder = run(settings)
    assert [line["step"] for line in folder.read() if "reward" in line] == [1, 2]
    assert newest_good(folder.path).name == "checkpoint-2"
    assert not (folder.path / SAVING).exists()


@pytest.mark.parametrize("largest", [1_000_000, 3_000, 100], ids=["weights", "optimizer", "first file"])
def test_a_disk_that_is_full_while_a_checkpoint_is_written(settings, monkeypatch, largest):
    save = UniARTrainer._save_checkpoint

    def save_second_to_a_full_disk(self, *args):
        if self.state.global_step < 2:
            return save(self, *args)
        if largest == 3_000:  # the weights have been written, then there is no room for the rest
            monkeypatch.setattr(self, "save_model", lambda *args, **kwargs: os.makedirs(args[0]))
        with files_no_larger_than(largest):
            return save(self, *args)

    monkeypatch.setattr(UniARTrainer, "_save_checkpoint", save_second_to_a_full_disk)
    with pytest.raises(UserError, match=r"checkpoint of step 2 could not be written to .*/run \(.* GB free there\): "):
        run(settings)
    monkeypatch.undo()
    require_unharmed(settings)
    if largest == 100:
        require_it_goes_on(settings)


def test_a_disk_that_is_full_while_metrics_are_written(settings, monkeypatch):
    append = RunFolder.append

    def append_second_to_a_full_disk(self, step, values):
        if step < 2:
            return append(self, step, values)
        with files_no_larger_than(self.metrics.stat().st_size + 20):
            return append(self, step, values)

    monkeypatch.setattr(RunFolder, "append", append_second_to_a_full_disk)
    with pytest.raises(UserError, match=r"run cannot be written: .*File too large.*; its checkpoints are as they were"):
        run(settings)
    monkeypatch.undo()
    assert not RunFolder(settings["output_dir"]).metrics.read_text().endswith("\n")  # cut short, as a full disk does it
    require_unharmed(settings)
    require_it_goes_on(settings)


@pytest.mark.parametrize("how", ["a file is in the way", pytest.param("no right to write", id="no right")])
def test_a_folder_that_cannot_be_written_any_longer(settings, monkeypatch, how):
    if how == "no right to write" and os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    folder, save = Path(settings["output_dir"]), UniARTrainer._save_checkpoint

    def save_second(self, *args):
        if self.state.global_step == 2 and how == "no right to write":
            folder.chmod(0o500)
        elif self.state.global_step == 2:
            (folder / SAVING).write_text("")
        return save(self, *args)

    monkeypatch.setattr(UniARTrainer, "_save_checkpoint", save_second)
    with pytest.raises(UserError, match="checkpoint of step 2 could not be written"):
        run(settings)
    monkeypatch.undo()
    folder.chmod(0o700)
    (folder / SAVING).unlink(missing_ok=True)
    require_unharmed(settings)


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no second file system here")
def test_a_run_folder_on_another_disk(settings):
    folder = Path(settings["output_dir"])
    other = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        folder.symlink_to(other)
        (folder / "final").symlink_to(folder.parent / "exported")  # the result on the first disk again
        settings["trainer"] |= {"max_steps": 1}
        assert run(settings) is not None
        settings["trainer"] |= {"max_steps": 2}
        again = run(settings)
        assert newest_good(again.path).name == "checkpoint-2"
        assert [line["step"] for line in again.read() if "reward" in line] == [1, 2]
        assert (folder.parent / "exported" / "model.safetensors").is_file()
        assert (folder / "final").is_symlink()
    finally:
        shutil.rmtree(other)


# Whatever else is written ---------------------------------------------------------------------------------------------


@pytest.fixture
def evaluated(settings: dict, tmp_path: Path) -> dict:
    (tmp_path / "held_out.jsonl").write_text('{"prompt": "a red circle"}\n{"prompt": "a blue circle"}\n')
    evaluate = {"prompts": str(tmp_path / "held_out.jsonl"), "at_start": True, "at_end": True}
    return changed(settings, evaluate=evaluate, trainer={"save_steps": 1})


def on_a_full_disk(monkeypatch, owner, name: str, largest: int, when=lambda *_, **__: True) -> None:
    """Calls of `owner.name` find room for files of so many bytes only."""
    called = getattr(owner, name)

    def calling(*args, **kwargs):
        with files_no_larger_than(largest) if when(*args, **kwargs) else nullcontext():
            return called(*args, **kwargs)

    monkeypatch.setattr(owner, name, calling)


def test_a_disk_that_is_full_in_the_export(settings, monkeypatch, tmp_path, capsys):
    """safetensors has an error class of its own for it."""
    on_a_full_disk(monkeypatch, rl.train, "export_model", 100_000)
    (tmp_path / "recipe.yaml").write_text(json.dumps(settings))
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.fullmatch(r"uniar-rl train: .*/run/final cannot be written: .*(File too large|os error 27).*\.", said)
    folder = RunFolder(settings["output_dir"])
    assert not list(folder.path.glob("final*"))
    monkeypatch.undo()
    monkeypatch.setattr(UniARTrainer, "training_step", None)  # nothing is left to train
    run(settings)
    assert (folder.final / "model.safetensors").is_file()


WRITTEN = {
    "evaluation": (RunFolder, "save_evaluation", 10, "it has no checkpoint yet"),
    "grid": (rl.trainer.callbacks, "sample_grid", 100, "it has no checkpoint yet"),
    "plot": (rl.trainer.callbacks, "plot_metrics", 100, "it has no checkpoint yet"),
    "best": (RunFolder, "note_best", 3, "it has no checkpoint yet"),
    "the end": (rl.run.finished, "write_whole", 10, None),
}


@pytest.mark.parametrize(("owner", "name", "largest", "kept"), WRITTEN.values(), ids=WRITTEN)
def test_a_disk_that_is_full_while_anything_is_written(evaluated, monkeypatch, owner, name, largest, kept):
    evaluated = changed(evaluated, evaluate={"every": 1, "early_stop": {}}, trainer={"max_steps": 1})
    on_a_full_disk(monkeypatch, owner, name, largest)
    said = "final cannot be written: " if kept is None else rf"run cannot be written: .*File too large.*; {kept}\.$"
    with pytest.raises(UserError, match=said):
        run(evaluated)
    monkeypatch.undo()
    folder = Path(evaluated["output_dir"])
    assert not list(folder.rglob("*.partial"))
    if name in ("sample_grid", "plot_metrics"):
        return  # which nothing reads back
    again = run(evaluated)
    assert [(line["step"], "reward" in line) for line in again.read()] == [(0, False), (1, False), (1, True)]
    assert set(again.evaluated_totals()) == {0, 1}


@pytest.mark.parametrize(
    ("how", "where"),
    [
        ("renamed", "before the update"),
        ("renamed", "before the save"),
        ("removed", "before the metrics"),
        ("renamed, and another in its place", "before the update"),
    ],
)
def test_a_folder_that_is_taken_away_from_a_run(settings, monkeypatch, tmp_path, how, where):
    folder, away = Path(settings["output_dir"]), tmp_path / "away"

    def take_away():
        if how == "removed":
            shutil.rmtree(folder)
        else:
            folder.rename(away)
        if how.endswith("place"):
            shutil.copytree(away, folder)

    owner, name = {
        "before the update": (UniARTrainer, "training_step"),
        "before the metrics": (RunFolder, "append"),
        "before the save": (UniARTrainer, "_save_checkpoint"),
    }[where]
    called, calls = getattr(owner, name), []

    def calling(*args, **kwargs):
        calls.append(name)
        if len(calls) == 2:
            take_away()
        return called(*args, **kwargs)

    monkeypatch.setattr(owner, name, calling)
    with pytest.raises(
        UserError, match=r"run is not (there any more|the folder that this run began in): it was rena"
    ) as caught:
        run(settings)
    assert "as they were" not in str(caught.value)
    assert folder.exists() == how.endswith("place")
    if how != "removed":
        assert [checkpoint.name for checkpoint in checkpoints(away)] == ["checkpoint-1"]
        assert fault(away / "checkpoint-1") is None


def size_of(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*"))


@pytest.fixture
def small_disk(tmp_path) -> Iterator[SmallDisk | None]:
    """None where only the root of a namespace of one's own may mount."""
    try:
        disk = SmallDisk(tmp_path / "disk")
    except PermissionError as refused:
        if subprocess.run([*NAMESPACE, "true"]).returncode:
            pytest.skip(f"{refused}, not even in a namespace")
        yield None
        return
    yield disk
    disk.close()


@pytest.mark.slow
def test_small_disks(evaluated, tmp_path, capsys, small_disk, request):
    """Of twelve sizes, from a thirteenth of what the run needs to twelve: a sentence, and with room the same end."""
    if small_disk is None:
        again = [sys.executable, "-m", "pytest", "-q", "-m", "slow", f"{request.path}::{request.node.name}"]
        assert subprocess.run([*NAMESPACE, *again], cwd=ROOT).returncode == 0
        return
    whole = run(evaluated, output_dir=str(tmp_path / "run"))
    needed = size_of(whole.path)
    folder = small_disk.place / "run"
    for part in range(1, 13):
        small_disk.resize(needed * part // 13)
        (tmp_path / "recipe.yaml").write_text(json.dumps({**evaluated, "output_dir": str(folder)}))
        capsys.readouterr()
        assert main(["train", str(tmp_path / "recipe.yaml")]) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        with capsys.disabled():
            print(f"{part}/13: {said}")
        assert re.match(r"uniar-rl train: .*(cannot|could not) be written.*(No space left|unexpected pos)", said)
        small_disk.resize(2 * needed)
        assert main(["train", str(tmp_path / "recipe.yaml")]) == 0
        require_same_run(RunFolder(folder), whole)
        shutil.rmtree(folder)


def require_same_run(found: RunFolder, expected: RunFolder) -> None:
    """Everything but seconds and paths."""
    lines, others = (
        [
            {key: value for key, value in line.items() if not any(word in key for word in ("second", "time", "memory"))}
            for line in run.read()
        ]
        for run in (found, expected)
    )
    assert lines == others
    names = [sorted(str(file.relative_to(run.path)) for file in run.path.rglob("*")) for run in (found, expected)]
    assert names[0] == names[1]
    for name in names[1]:
        if name.endswith(".safetensors") or name.startswith("evaluations/"):
            assert (found.path / name).read_bytes() == (expected.path / name).read_bytes(), name


def test_why_a_file_could_not_be_written(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "run" / "x"))
    copied = shutil.Error([("a", str(tmp_path / "b"), str(full)), ("c", "d", "another")])
    safetensors = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    torch_writer = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
    for error in (full, copied, safetensors, torch_writer):
        assert "No space left on device" in write_failure(error) or "unexpected pos" in write_failure(error)
        assert failure_within(error, tmp_path / "run") is not None
    gone = FileNotFoundError(errno.ENOENT, "No such file or directory", str(tmp_path / "run" / "x"))
    assert failure_within(gone, tmp_path / "run") is not None
    for of_others in (
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/elsewhere"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        RuntimeError("PytorchStreamReader failed reading zip archive [inline_container.cc]"),
        RuntimeError("gloo: connection closed by peer"),
        SafetensorError("Error while deserializing header: header too large"),
        OSError("no number"),
    ):
        assert failure_within(of_others, tmp_path / "run") is None


def test_what_is_full_elsewhere_is_not_the_run_folders(tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "link").symlink_to(run)
    for number in (errno.ENOSPC, errno.EROFS, errno.EDQUOT):
        for name in ("/dev/shm/torch_1", "/home/a/.cache/huggingface/x", str(tmp_path / "run-2" / "x")):
            assert failure_within(OSError(number, "said", name), run) is None, name
        for name in (None, str(run), str(run / "x"), str(run / ".x.partial")):
            assert failure_within(OSError(number, "said", name), run) is not None, name
    assert failure_within(SafetensorError("I/O error: /dev/shm/x: No space left (os error 28)"), run) is None
    assert failure_within(SafetensorError("I/O error: No space left (os error 28)"), run) is not None
    monkeypatch.chdir(tmp_path)
    full = OSError(errno.ENOSPC, "said", str(run / "x"))
    assert failure_within(full, Path("run")) is not None
    assert failure_within(full, tmp_path / "link") is not None
    assert failure_within(OSError(errno.ENOSPC, "said", "run/x"), Path("run")) is not None
