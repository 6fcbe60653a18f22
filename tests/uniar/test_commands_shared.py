"""Drawing shared among processes, and UniAR's own layout of a folder."""

import json
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from support.command_line import draw, write_lines
from support.warm_process import run_warm

from uniar.drawn_files import PNG_KEY, read_record
from uniar.placement import choose_device

LINES = [
    {"idx": 7, "prompt": "a red circle", "meta": {"tag": "color", "include": [{"class": "circle", "count": 1}]}},
    {"idx": 0, "prompt": "a blue square", "meta": {"tag": "color"}},
    {"idx": 12, "prompt": "two dots", "meta": {}, "width": 96},
]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_several_processes_draw_what_one_draws(nano_checkpoint, tmp_path, capsys):
    prompts = write_lines(tmp_path / "prompts.jsonl", LINES)
    options = ["--prompts", prompts, "--images-per-prompt", 2, "--batch-size", 1, "--layout", "uniar", "--output"]
    assert draw(nano_checkpoint, *options, tmp_path / "one") == 0
    command = ["generate", "--model", nano_checkpoint, "--steps", 2, "--height", 64, "--width", 64, *options]
    shared = tmp_path / "two"
    (shared / "00000" / "samples").mkdir(parents=True)  # as a run that was stopped leaves it
    (shared / "00000" / "samples" / "0001.png").write_bytes((tmp_path / "one/00000/samples/0001.png").read_bytes())
    done = run_warm("-m", "rl.cli", *command, shared, processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("6 images in") == 1
    assert "(1 already there)" in done.stdout
    assert contents(shared) == contents(tmp_path / "one")

    names = [f"{idx:05d}/samples/{k:04d}.png" for idx in (7, 0, 12) for k in (0, 1)]
    expected = {*names, *(f"{idx:05d}/metadata.json" for idx in (7, 0, 12)), "manifest.jsonl"}
    assert contents(shared).keys() == expected
    for line in LINES:
        assert json.loads((shared / f"{line['idx']:05d}" / "metadata.json").read_text()) == line
    listed = [json.loads(line)["file"] for line in (shared / "manifest.jsonl").read_text().splitlines()]
    assert listed == names
    assert read_record(shared / names[0])["prompt"] == "a red circle"
    assert draw(nano_checkpoint, *options, shared) == 0
    assert "(6 already there)" in capsys.readouterr().out


def test_layouts_hold_the_same_images(nano_checkpoint, tmp_path):
    lines = [{"instruction": "a red circle", "id": "red"}, {"instruction": "a blue square", "id": "blue"}]
    prompts = write_lines(tmp_path / "prompts.jsonl", lines)
    assert draw(nano_checkpoint, "--prompts", prompts, "--output", tmp_path / "flat") == 0
    assert draw(nano_checkpoint, "--prompts", prompts, "--layout", "uniar", "--output", tmp_path / "uniar") == 0
    for place, line in enumerate(lines):  # lines without an idx are counted, as UniAR's script does
        flat, uniar = tmp_path / "flat" / f"{line['id']}-0.png", tmp_path / "uniar" / f"{place:05d}/samples/0000.png"
        assert Image.open(flat).tobytes() == Image.open(uniar).tobytes()
        metadata = json.loads((tmp_path / "uniar" / f"{place:05d}" / "metadata.json").read_text())
        assert metadata == {**line, "idx": place, "prompt": line["instruction"]}


def test_editing_files_of_uniar(nano_checkpoint, tmp_path):
    (tmp_path / "pictures" / "animal").mkdir(parents=True)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "pictures" / "animal" / "1.png")
    meta = {"input_image": "animal/1.png", "metadata": {"edit_type": "adjust", "original_id": "1082"}}
    prompts = write_lines(tmp_path / "edits.jsonl", [{"idx": 3, "prompt": "make it blue", "meta": meta}])
    options = ["--prompts", prompts, "--image-root", tmp_path / "pictures", "--image-key", "input_image"]
    size = ["--height", 64, "--width", 64, "--layout", "uniar", "--output", tmp_path / "out"]
    assert draw(nano_checkpoint, *options, *size, command="edit") == 0
    assert (tmp_path / "out/00003/samples/0000.png").is_file()
    assert json.loads((tmp_path / "out/00003/metadata.json").read_text())["meta"] == meta


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([{"prompt": "a", "idx": "one"}], "'idx' is 'one'"),
        ([{"prompt": "a", "idx": -1}], "'idx' is -1"),
        ([{"prompt": "a", "idx": 1.5}], "'idx' is 1.5"),
        ([{"prompt": "a", "idx": 1, "id": "x"}, {"prompt": "b"}], "its idx 1 is already that of"),
    ],
)
def test_lines_that_have_no_place_in_the_layout(nano_checkpoint, tmp_path, capsys, lines, words):
    prompts = write_lines(tmp_path / "prompts.jsonl", lines)
    assert draw(nano_checkpoint, "--prompts", prompts, "--layout", "uniar", "--output", tmp_path / "out") == 2
    assert words in capsys.readouterr().err


def test_a_layout_needs_a_folder(nano_checkpoint, tmp_path, capsys):
    options = ("--prompt", "a", "--layout", "uniar", "--output", tmp_path / "a.png")
    assert draw(nano_checkpoint, *options) == 2
    assert "name a folder for the layout uniar" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["3", "[]", '"a"', "null", "{", "[" * 9999])
def test_a_record_that_is_none_is_somebody_elses_picture(tmp_path, text):
    marks = PngInfo()
    marks.add_itxt(PNG_KEY, text)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=marks)
    assert read_record(tmp_path / "a.png") is None


def test_each_process_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.empty", lambda *_, **__: None)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [str(choose_device(name)) for name in ("auto", "cuda", "cuda:1", "cpu")] == [
        *("cuda:3", "cuda:3", "cuda:1", "cpu")
    ]
