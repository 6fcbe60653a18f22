"""A full disk while a command writes: one sentence, exit code 2, and no half file."""

import pytest
from PIL import Image
from support.command_line import chat, draw, write_lines
from support.full_disk import files_no_larger_than

from rl.cli import main

FULL = "cannot be written: File too large.\n"


@pytest.mark.parametrize("layout", ["flat", "uniar"])
def test_images(nano_checkpoint, tmp_path, capsys, layout) -> None:
    options = ("--prompt", "a red circle", "--layout", layout, "--output", tmp_path / "drawn")
    if layout == "uniar":
        options = ("--prompts", write_lines(tmp_path / "p.jsonl", [{"prompt": "a red circle", "idx": 0}]), *options[2:])
    with files_no_larger_than(40):  # the folder's manifest would not go in either
        assert draw(nano_checkpoint, *options) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"uniar-rl generate: '{tmp_path / 'drawn'}")
    assert said.endswith(FULL)
    assert said.count("\n") == 1
    assert not [file for file in (tmp_path / "drawn").rglob("*") if file.is_file()]


def test_an_edit(nano_checkpoint, picture, tmp_path, capsys) -> None:
    with files_no_larger_than(1000):
        options = ("--prompt", "night", "--image", picture, "--output", tmp_path / "drawn" / "a.png")
        assert draw(nano_checkpoint, *options, command="edit") == 2
    assert capsys.readouterr().err == f"uniar-rl edit: '{tmp_path / 'drawn' / 'a.png'}' {FULL}"
    assert not list((tmp_path / "drawn").iterdir())


def test_answers_and_what_is_there_is_kept(nano_checkpoint, tmp_path, capsys) -> None:
    questions, output = tmp_path / "q.jsonl", tmp_path / "answers.jsonl"
    write_lines(questions, [{"prompt": "One?"}])
    options = ("--prompts", questions, "--output", output, "--quiet")
    assert chat(nano_checkpoint, *options) == 0
    first = output.read_bytes()
    write_lines(questions, [{"prompt": "One?"}, {"prompt": "Two?"}])
    with files_no_larger_than(len(first) + 50):
        assert chat(nano_checkpoint, *options) == 2
    assert capsys.readouterr().err == f"uniar-rl chat: '{output}' {FULL}"
    assert output.read_bytes().startswith(first)
    assert chat(nano_checkpoint, *options) == 0
    assert output.read_bytes().startswith(first)
    assert output.read_bytes().count(b"\n") == 2


def test_scores(tmp_path, capsys) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    command = ["rewards", "score", "compressibility", "--image", tmp_path / "a.png", "--output", tmp_path / "s.jsonl"]
    with files_no_larger_than(20):
        assert main(list(map(str, command))) == 2
    assert capsys.readouterr().err.endswith(f"'{tmp_path / 's.jsonl'}' {FULL}")
