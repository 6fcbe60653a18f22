import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.fresh_process import ROOT

from uniar.errors import UserError
from uniar.reading.files import (
    read_json,
    reason_of,
    remove_unfinished,
    unfinished_path,
    user_path,
    whole_file,
    write_whole,
)


def test_a_file_is_written_whole(tmp_path):
    write_whole(tmp_path / "a.json", '{"é": 1}')
    assert read_json(tmp_path / "a.json") == {"é": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def _interrupted(file):
    with whole_file(file) as unfinished:
        unfinished.write_text("half of what")
        raise KeyboardInterrupt


def _onto_a_full_disk(file):
    with whole_file(file) as unfinished:
        os.symlink("/dev/full", unfinished)
        unfinished.write_bytes(b"x" * 100_000)


def test_an_interrupted_writer_leaves_the_file_as_it_was(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("before")
    with pytest.raises(KeyboardInterrupt):
        _interrupted(file)
    assert file.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


WRITER = """
import sys
from pathlib import Path
from uniar.reading.files import whole_file
with whole_file(Path(sys.argv[1])) as unfinished:
    unfinished.write_text("half of what")
    print(unfinished.name, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_writer_has_left_is_removed_and_nothing_else(tmp_path):
    for folder in ("1", "2"):
        (tmp_path / folder).mkdir()
    killed, alive = (
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / folder / "a.png")],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for folder in ("1", "2")
    )
    left, going_on = tmp_path / "1" / killed.stdout.readline().strip(), tmp_path / "2" / alive.stdout.readline().strip()
    killed.kill()
    killed.wait()
    (tmp_path / "1" / ".mine.partial").write_text("of a user")
    again = unfinished_path(going_on.with_name("b.png"), os.getpid())  # by a process whose number we have been given
    again.write_text("half")
    os.utime(again, (1, 1))
    remove_unfinished(tmp_path, "*/*.jpg")
    assert left.exists()
    remove_unfinished(tmp_path, "*/*.png", "*/*.partial")
    assert {file.name for file in tmp_path.glob("*/*")} == {".mine.partial", going_on.name}
    assert alive.communicate("")[0] == ""
    assert (tmp_path / "2" / "a.png").read_text() == "half of what"


DEAD = 2**22 + 1
"""no process has so large a number"""


def test_what_another_machine_is_writing_stays(tmp_path, monkeypatch):
    """On a disk that both write to: whether that process is alive is not known here."""
    left = unfinished_path(tmp_path / "a.png", DEAD)
    monkeypatch.setattr(socket, "gethostname", lambda: "another.host")
    begun = unfinished_path(tmp_path / "a.png", DEAD)
    monkeypatch.setattr(os, "readlink", lambda *_: "pid:[12]")
    contained = unfinished_path(tmp_path / "a.png", DEAD)
    monkeypatch.undo()
    assert contained.name == f".a.png.another-host-12.{DEAD}.partial"
    for file in (left, begun, contained, tmp_path / f".a.png.{DEAD}.partial"):
        file.write_text("half")
    remove_unfinished(tmp_path, "*.png")
    assert {file.name for file in tmp_path.iterdir()} == {begun.name, contained.name, f".a.png.{DEAD}.partial"}


def test_what_cannot_be_removed_or_is_no_file_of_ours_stays(tmp_path, monkeypatch):
    left = {name: unfinished_path(tmp_path / name, DEAD) for name in ("a", "b", "folder", "link")}
    left["folder"].mkdir()
    left["a"].write_text("half")
    left["b"].write_text("half")
    left["link"].symlink_to(left["a"])
    with monkeypatch.context() as another:
        another.setattr(os, "geteuid", lambda: os.getuid() + 1)
        remove_unfinished(tmp_path, "*")
    assert len(list(tmp_path.iterdir())) == 4
    unlink = Path.unlink

    def unlink_but_a(file, missing_ok=False):
        if file == left["a"]:
            raise PermissionError(errno.EPERM, "said")
        unlink(file, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink_but_a)
    remove_unfinished(tmp_path, "*")
    assert {file.name for file in tmp_path.iterdir()} == {left[name].name for name in ("a", "folder", "link")}


def test_a_long_name_is_written_and_its_leftover_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "h" * 64)
    names = [f"{first}{'é' * 120}.png" for first in ("a", "b")]
    for name in names:
        write_whole(tmp_path / name, "whole")
        unfinished_path(tmp_path / name, DEAD).write_text("half")
    assert len(list(tmp_path.iterdir())) == 4
    remove_unfinished(tmp_path, "*.png")
    assert sorted(file.name for file in tmp_path.iterdir()) == names


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("before")
    with pytest.raises(OSError, match="No space left"):
        _onto_a_full_disk(file)
    assert file.read_text() == "before"


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"[" * 100_000, b"nul", b"1" * 10_000])
def test_what_is_not_whole_json_is_one_sentence(tmp_path, content):
    file = tmp_path / "state.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"the record '.*state\.json' is not whole, valid JSON: .+\.$"):
        read_json(file, "record")


@pytest.mark.parametrize(
    ("content", "said"), [(b"\xff{", "UTF-8: invalid"), (b"{\0}\0", "UTF-8 but looks like UTF-16LE")]
)
def test_json_that_is_not_in_utf_8_is_one_sentence(tmp_path, content, said):
    file = tmp_path / "state.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"the record '.*state\.json' is not text in {said}.*\.$"):
        read_json(file, "record")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(UserError, match=r"the file '.*none\.json' does not exist\.$"):
        read_json(tmp_path / "none.json")
    with pytest.raises(UserError, match=r"the file '.*' cannot be read: it is a folder\.$"):
        read_json(tmp_path)


def test_a_byte_order_mark_is_passed_over(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": 1}).encode())
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_home_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/runs") == tmp_path / "runs"
    assert str(user_path("a~/b")) == "a~/b"
    with pytest.raises(UserError, match="'~nobody-of-that-name/x'"):
        user_path("~nobody-of-that-name/x")


def test_reasons():
    assert reason_of(ValueError("bad value.\nmore")) == "bad value"
    assert reason_of(KeyError()) == "KeyError"


def test_a_path_that_is_empty_is_refused_where_it_is_given():
    """As `--model "$MODEL"` gives where the variable is not set."""
    for nothing in ("", "  "):
        with pytest.raises(UserError, match="a path is empty"):
            user_path(nothing)


def test_what_no_file_can_be_called_is_refused_before_a_disk_is_asked():
    for path, words in {
        "x" * 256: "is too long: a name may have 255 bytes",
        "é" * 128: "is too long",
        "a/" * 2100: "is too long",
        "a\0b": "holds a NUL",
        "a\ud800": "is not text in UTF-8",
        "https://e.org/a": "is an address, not a path",
        "hf:/a/b": "is an address, not a path",
    }.items():
        with pytest.raises(UserError, match=words) as error:
            user_path(path)
        assert len(str(error.value)) < 300
    for path in ("x" * 255, "a:b/c", "C:/a", "a/b:c"):
        assert str(user_path(path)) == path


def test_an_error_shows_no_value_without_end():
    assert str(UserError(f"a: {'b' * 249} c")) == f"a: {'b' * 249} c"
    assert str(UserError(f"a: '{'iVBOR' * 100}' c")) == f"a: '{('iVBOR' * 100)[:58]}…{('iVBOR' * 100)[-39:]}' c"
