"""The folder of an exported model where a process was killed, or a disk refuses, between two renamings."""

import errno
import fcntl
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from rl.checkpoint.exported_folder import appearing
from rl.checkpoint.folder_lock import FolderLock
from rl.checkpoint.folders import listed
from rl.config.recipe import recipe_from_mapping
from rl.export.writing import export_model
from rl.run.finished import finished
from rl.run.folder import RunFolder
from uniar.errors import UserError

SIGN = "config.json"


def model(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True)
    (folder / SIGN).write_text(content)
    return folder


def write_and_fail(target: Path) -> None:
    with appearing(target, SIGN):
        raise RuntimeError("out of memory")


def write(target: Path, content: str) -> None:
    with appearing(target, SIGN) as folder:
        (folder / SIGN).write_text(content)


def there(folder: Path) -> dict[str, str]:
    return {found.name: (found / SIGN).read_text() for found in folder.iterdir()}


def test_what_was_replaced_by_nothing_gets_its_name_back(tmp_path):
    """Killed between two renamings, it is the only whole one, which the next export must not lose if it fails."""
    model(tmp_path / "final.replaced", "old")
    model(tmp_path / "final.partial", "new")
    with pytest.raises(RuntimeError, match="out of memory"):
        write_and_fail(tmp_path / "final")
    assert there(tmp_path) == {"final": "old"}
    write(tmp_path / "final", "newer")
    assert there(tmp_path) == {"final": "newer"}


def test_what_has_something_newer_in_its_place_is_removed(tmp_path):
    model(tmp_path / "final.replaced", "old")
    model(tmp_path / "final", "new")
    with pytest.raises(RuntimeError, match="out of memory"):
        write_and_fail(tmp_path / "final")
    assert there(tmp_path) == {"final": "new"}


def test_an_export_that_cannot_be_renamed_leaves_the_older_one(tmp_path, monkeypatch):
    model(tmp_path / "final", "old")
    rename = Path.rename

    def refused(path, to):
        if path.name == "final.partial":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(UserError, match="final cannot be written"):
        write(tmp_path / "final", "new")
    assert there(tmp_path) == {"final": "old"}


@pytest.mark.parametrize("locks", [True, False])
def test_an_export_gets_its_name_only_from_who_holds_the_run(tmp_path, monkeypatch, locks):
    """Without locks the run that wrote it may be alive, and about to do it."""
    if not locks:

        def flock(*_):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", flock)
    folder = RunFolder(tmp_path / "run")
    partial = model(folder.path / "final.partial", "new")
    record = {"step": 3, "epochs": None, "patience": None, "average": None, "said": None, "files": listed(partial)}
    folder.finished.write_text(json.dumps(record))
    minimal = {"model": {"preset": "nano"}, "data": {"prompts": "p.jsonl"}, "rewards": ["color"]}
    recipe, args = recipe_from_mapping(minimal), SimpleNamespace(max_steps=3)
    record["average"] = recipe.evaluate.ema
    folder.finished.write_text(json.dumps(record))
    with FolderLock() as lock:
        lock.take(folder.path)
        assert lock.holds == locks
        assert finished(folder, recipe, args, held=lock.holds) == (record if locks else None)
    assert not lock.holds
    assert partial.exists() != locks
    assert folder.final.exists() == locks


def test_an_export_that_is_replaced_gives_its_decoder(nano_model, nano_checkpoint, tmp_path):
    """As best/ is at each improvement: the decoder, 15 GB with its text encoders, is not copied again."""
    numbers = []
    for _ in range(3):
        export_model(nano_model, nano_checkpoint, tmp_path / "best")
        numbers.append([file.stat().st_ino for file in sorted((tmp_path / "best").glob("s*/**/*.safetensors"))])
    assert numbers[0] == numbers[1] == numbers[2] != []
    for file in (tmp_path / "best").rglob("*.safetensors"):
        assert file.stat().st_nlink == 1
        source = nano_checkpoint / file.relative_to(tmp_path / "best")
        assert not file.samefile(source)
