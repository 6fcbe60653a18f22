"""Bad input to `uniar-rl generate`, `edit` and `chat`: one sentence, exit code 2, and nothing written."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from support.command_line import chat, draw, write_lines

LINE_FAULTS = {
    "broken": ('{"prompt": "a"', "line 2: not valid JSON", "column"),
    "no object": ('"a cat"', 'line 2: found "a cat" (a string)', "an object"),
    "no prompt": ('{"text": "a"}', "line 2", "'prompt' (or 'instruction') is missing"),
    "two prompts": ('{"prompt": "a", "instruction": "b"}', "line 2", "two names of one field"),
    "no text": ('{"prompt": 3}', "line 2: 'prompt' is 3 (a number)", "a string"),
    "empty prompt": ('{"prompt": " "}', "line 2", "the prompt is empty"),
    "slip": ('{"prompt": "a", "heigth": 64}', "unknown field 'heigth'", "'height'"),
    "size": ('{"prompt": "a", "height": 65}', "line 2: height 65 is not a multiple of 32", "64 and 96"),
    "size kind": ('{"prompt": "a", "width": "64px"}', "line 2: 'width' is '64px'", "pixels"),
    "size zero": ('{"prompt": "a", "width": 0}', "line 2: 'width' is 0", "above 0"),
    "same id": ('{"prompt": "a", "id": 1}', "line 2: its name '1' is already that of line 1", ""),
    "path as id": ('{"prompt": "a", "id": "../a"}', "line 2: the id '../a' cannot be a file name", ""),
    "an edit": ('{"prompt": "a", "image": "picture.png"}', "line 2", "uniar-rl edit"),
    "no image": ('{"prompt": "a", "image": "a.png"}', "line 2: the image", "a.png' does not exist"),
    "picture token": ('{"prompt": "<|image_pad|>"}', "line 2", "<|image_pad|>"),
    "half a character": (r'{"prompt": "a", "id": "\ud83d"}', "line 2", "stands alone"),
    "huge number": ('{"prompt": "a", "number": ' + "1" * 5000 + "}", "line 2: not valid JSON", "digits"),
}


@pytest.mark.parametrize("name", LINE_FAULTS)
def test_a_bad_line_is_named(name, nano_checkpoint, tmp_path, capsys) -> None:
    line, *expected = LINE_FAULTS[name]
    file = tmp_path / "prompts.jsonl"
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    file.write_text('{"prompt": "a red circle"}\n' + line + "\n")
    assert draw(nano_checkpoint, "--prompts", file, "--output", tmp_path / "drawn") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"uniar-rl generate: {file}, ")
    assert said.count("\n") == 1
    for part in expected:
        assert part in said
    assert not (tmp_path / "drawn").exists()


GENERATE_FAULTS = {
    "no prompt": ((), "--prompt", "--prompts"),
    "both": (("--prompt", "a", "--prompts", "b.jsonl"), "one of the two", ""),
    "empty": (("--prompt", ""), "--prompt: the prompt is empty", ""),
    "bytes": (("--prompt", "a\udcff"), "--prompt: the prompt is not text in UTF-8", ""),
    "no file": (("--prompts", "none.jsonl"), "'none.jsonl' does not exist", ""),
    "folder": (("--prompts", "."), "the folder '.' has no .txt files", ""),
    "empty file": (("--prompts", "empty.jsonl"), "the prompts 'empty.jsonl' are empty", ""),
    "no text": (("--prompts", "picture.png"), "the prompts 'picture.png' are not in a form that is read", ""),
    "height": (("--prompt", "a", "--height", "100"), "--prompt: height 100 is not a multiple of 32", "96 and 128"),
    "negative": (("--prompt", "a", "--width", "-64"), "width -64", "32"),
    "temperature": (("--prompt", "a", "--temperature", "-1"), "--temperature is -1.0", "0 or more"),
    "nan": (("--prompt", "a", "--cfg", "nan"), "--cfg is nan", "0 or more"),
    "steps": (("--prompt", "a", "--steps", "0"), "--steps is 0", "1 or more"),
    "no images": (("--prompt", "a", "--images-per-prompt", "0"), "--images-per-prompt is 0", "1 or more"),
    "batch": (("--prompt", "a", "--batch-size", "0"), "--batch-size is 0", "1 or more"),
    "budget": (("--prompt", "a", "--memory-budget-gb", "0"), "--memory-budget-gb is 0.0", "above 0"),
    "small budget": (("--prompt", "a", "--memory-budget-gb", "1e-6"), "one sample's rollout needs", ""),
    "ratio": (("--prompt", "a", "--upsampling-ratio", "3"), "--upsampling-ratio is 3.0", "1 to 2"),
    "odd ratio": (("--prompt", "a", "--upsampling-ratio", "1.1"), "1.1", "nearest valid sizes"),
    "several in one": (("--prompt", "a", "--images-per-prompt", "2", "--output", "a.png"), "a.png is one file", "2"),
    "other format": (("--prompt", "a", "--output", "a.jpg"), "a.jpg", ".png"),
    "taken": (("--prompt", "a", "--output", "picture.png"), "picture.png exists and was not drawn", "--overwrite"),
    "file as folder": (("--prompt", "a", "--output", "empty.jsonl"), "empty.jsonl is a file", "folder"),
    "folder as file": (("--prompt", "a", "--output", "folder.png"), "folder.png is a folder", ""),
    "other manifest": (("--prompt", "a", "--output", "other"), "manifest.jsonl exists and is not a manifest", ""),
    "device": (("--prompt", "a", "--device", "abacus"), "--device abacus is not here: there is cpu", "auto"),
    "no device": (("--prompt", "a", "--device", "meta"), "--device meta is not here: there is cpu", "auto"),
    "number of a device": (("--prompt", "a", "--device", "cpu:3"), "--device cpu:3 is not here", "auto"),
    "infinite": (("--prompt", "a", "--cfg", "inf"), "--cfg is inf; it must be finite, 0 or more", ""),
    "no place to write": (("--prompt", "a", "--output", "/proc/x.png"), "'/proc' cannot be written", ""),
    "no place for a folder": (("--prompt", "a", "--output", "/proc/x/y"), "'/proc/x/y' cannot be written", ""),
    "long name": (("--prompt", "a", "--model", "x" * 256), "the path 'xxx", "is too long"),
    "address": (("--prompt", "a", "--model", "https://huggingface.co/a/b"), "is an address", "owner/name for a model"),
    "flash": (("--prompt", "a", "--attention", "flash_attention_2"), "flash_attention_2", "use sdpa"),
    "no checkpoint": (
        ("--prompt", "a", "--model", "no/such/thing"),
        "there is no checkpoint folder no/such/thing",
        "",
    ),
    "preset": (("--prompt", "a", "--model", "preset:nan"), "'nan'", "'nano'"),
}


@pytest.mark.parametrize("name", GENERATE_FAULTS)
def test_bad_options_are_one_sentence(name, nano_checkpoint, picture, tmp_path, capsys, monkeypatch) -> None:
    options, *expected = GENERATE_FAULTS[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "other").mkdir()
    write_lines(tmp_path / "other" / "manifest.jsonl", [{"name": "somebody else's"}])
    assert draw(nano_checkpoint, "--output", "drawn", *options) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("uniar-rl generate: ")
    assert said.endswith((".", "?"))
    for part in expected:
        assert part in said
    assert json.loads((tmp_path / "other" / "manifest.jsonl").read_text()) == {"name": "somebody else's"}


def test_a_checkpoint_without_a_part_or_of_another_model(nano_checkpoint, tmp_path, capsys) -> None:
    checkpoint = Path(shutil.copytree(nano_checkpoint, tmp_path / "checkpoint"))
    options = ("--prompt", "a", "--output", tmp_path / "drawn")
    shutil.rmtree(checkpoint / "sd3_transformer")
    assert draw(checkpoint, *options) == 2
    assert "has no sd3_transformer/config.json" in capsys.readouterr().err
    questions = write_lines(tmp_path / "questions.jsonl", [{"prompt": "What is it?"}])
    assert chat(checkpoint, "--prompt", "What is it?") == 0  # which draws nothing
    assert chat(checkpoint, "--prompts", questions, "--output", tmp_path / "answers.jsonl") == 0
    capsys.readouterr()
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "model_type": "qwen3_vl"}))
    assert chat(checkpoint, "--prompt", "What is it?") == 2
    assert "says model_type 'qwen3_vl'; it must be 'uniar'" in capsys.readouterr().err
    shutil.copytree(nano_checkpoint / "sd3_transformer", checkpoint / "sd3_transformer")
    (checkpoint / "config.json").write_text(json.dumps({**config, "vistok_pred": False}))
    weights = load_file(checkpoint / "model.safetensors")
    reader = {name: tensor for name, tensor in weights.items() if not name.startswith("output_layer_vistok.")}
    save_file(reader, checkpoint / "model.safetensors", {"format": "pt"})
    assert draw(checkpoint, *options) == 2
    assert "has no head to draw" in capsys.readouterr().err


def test_bad_pictures_are_named(nano_checkpoint, picture, tmp_path, capsys) -> None:
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "half.png").write_bytes(picture.read_bytes()[:400])
    faults = {
        "none.png": "does not exist",
        "text.png": "is not a whole picture in a format",
        "half.png": "cannot be read",
    }
    for name, reason in faults.items():
        file = tmp_path / name
        assert draw(nano_checkpoint, "--image", file, "--prompt", "a", "--output", tmp_path, command="edit") == 2
        assert f"uniar-rl edit: the image '{file}' {reason}" in capsys.readouterr().err
        assert chat(nano_checkpoint, "--image", file, "--prompt", "a") == 2
        assert f"uniar-rl chat: the image '{file}' {reason}" in capsys.readouterr().err
    assert draw(nano_checkpoint, "--prompt", "a", "--output", tmp_path, command="edit") == 2
    assert "--prompt: there is no image to edit; name it with --image" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.jsonl"))


def test_chat_is_not_for_several_processes(nano_checkpoint, tmp_path, capsys, monkeypatch) -> None:
    questions = write_lines(tmp_path / "questions.jsonl", [{"prompt": "One?"}])
    for name, value in {"LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert chat(nano_checkpoint, "--prompts", questions, "--output", tmp_path / "answers.jsonl") == 2
    assert "chat runs in one process" in capsys.readouterr().err
    assert not (tmp_path / "answers.jsonl").exists()


def test_chat_asks_for_an_output_with_a_file_of_questions(nano_checkpoint, tmp_path, capsys) -> None:
    questions = write_lines(tmp_path / "questions.jsonl", [{"prompt": "One?"}])
    for options in (("--prompts", questions), ("--prompt", "One?", "--output", tmp_path / "a.jsonl")):
        assert chat(nano_checkpoint, *options) == 2
        assert "--prompts and --output go together" in capsys.readouterr().err
    assert chat(nano_checkpoint, "--prompts", questions, "--output", tmp_path) == 2
    assert f"'{tmp_path}' cannot be written: Is a directory" in capsys.readouterr().err
    assert chat(nano_checkpoint, "--prompt", "One?", "--temperature", "-1") == 2
    assert "--temperature is -1.0" in capsys.readouterr().err
