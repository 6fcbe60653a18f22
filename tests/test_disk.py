"""Runs whose disk is full, cannot be written, or is another one: a clear error, and what was complete stays so."""

import os
import resource
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from training_runs import changed, run, small_recipe

from rl.checkpoints import SAVING, checkpoints, fault, newest_good
from rl.run_folder import RunFolder
from rl.trainer import UniARTrainer
from uniar.errors import UserError


@pytest.fixture
def settings(nano_checkpoint: Path, tmp_path: Path) -> dict:
    recipe = small_recipe(nano_checkpoint, tmp_path)
    return changed({**recipe, "resume": "auto"}, trainer={"max_steps": 2, "save_steps": 1})


@contextmanager
def files_no_larger_than(size: int):
    """As on a full disk, writes fail; any user may set it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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
