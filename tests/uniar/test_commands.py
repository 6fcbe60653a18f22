"""`uniar-rl generate`, `edit` and `chat`, run as a user runs them, on a small random checkpoint."""

import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.command_line import chat, draw, write_lines
from transformers import AutoProcessor

from uniar.commands import drawing
from uniar.commands.requests import slug
from uniar.drawn_files import read_record
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.reading.files import unfinished_path
from uniar.reading.pictures import editing_size, load_picture

LINES = [
    {"prompt": "a red circle", "id": "red"},
    {"instruction": "a blue square and a green star", "number": 3, "task": "counting"},
    {"prompt": "two yellow dots", "height": 64, "width": 96},
    {"prompt": "a red circle"},
]
NAMES = ["red", "2", "3", "4"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "prompts.jsonl", LINES)


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image).astype(int)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def manifest(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


# generate ------------------------------------------------------------------------------------------------------------


def test_a_single_image_is_drawn_once_and_replaced_only_on_request(nano_checkpoint, tmp_path, capsys) -> None:
    file = tmp_path / "new" / "circle.png"
    assert draw(nano_checkpoint, "--prompt", "a red circle", "--output", file) == 0
    assert capsys.readouterr().out == f"1 image in {file}\n"
    assert pixels(file).shape == (64, 64, 3)
    assert pixels(file).std() > 1
    first, drawn_at = file.read_bytes(), file.stat().st_mtime_ns

    assert draw(nano_checkpoint, "--prompt", "a red circle", "--output", file) == 0
    assert capsys.readouterr().out == f"1 image in {file} (1 already there)\n"
    assert file.stat().st_mtime_ns == drawn_at
    assert draw(nano_checkpoint, "--prompt", "a blue square", "--output", file) == 2
    assert "was drawn with prompt 'a red circle', not 'a blue square'" in capsys.readouterr().err
    assert file.read_bytes() == first
    again = ("--prompt", "a blue square", "--output", file, "--overwrite", "--quiet")
    assert draw(nano_checkpoint, *again) == 0
    assert capsys.readouterr().out == ""
    assert np.abs(pixels(file) - np.asarray(Image.open(io.BytesIO(first)))).max() > 1
    assert [entry.name for entry in file.parent.iterdir()] == ["circle.png"]


def test_many_prompts_of_mixed_sizes_fill_a_folder(nano_checkpoint, prompts, tmp_path) -> None:
    folder = tmp_path / "drawn"
    options = ("--prompts", prompts, "--output", folder, "--images-per-prompt", 2, "--batch-size", 3)
    assert draw(nano_checkpoint, *options) == 0
    files = [f"{name}-{index}.png" for name in NAMES for index in range(2)]
    assert sorted(contents(folder)) == sorted([*files, "manifest.jsonl"])
    assert [line["file"] for line in manifest(folder)] == files
    for line in manifest(folder):
        assert pixels(folder / line["file"]).shape == (line["height"], line["width"], 3)
        assert {"file": line["file"], **read_record(folder / line["file"])} == line
    assert [line["width"] for line in manifest(folder)] == [64, 64, 64, 64, 96, 96, 64, 64]
    assert [line["prompt"] for line in manifest(folder)[:3]] == ["a red circle"] * 2 + [LINES[1]["instruction"]]
    # Neither the images of a prompt nor two lines with the same prompt are copies of each other.
    same = [pixels(folder / name) for name in ("red-0.png", "red-1.png", "4-0.png", "4-1.png")]
    for number, one in enumerate(same):
        assert all(np.abs(one - other).max() > 1 for other in same[:number])


def test_a_stopped_run_goes_on_to_the_same_bytes(nano_checkpoint, prompts, tmp_path, monkeypatch) -> None:
    options = ("--prompts", prompts, "--images-per-prompt", 2, "--batch-size", 2)
    assert draw(nano_checkpoint, *options, "--output", tmp_path / "whole") == 0
    whole = contents(tmp_path / "whole")

    folder, sizes, draw_batch = tmp_path / "stopped", [], drawing.draw_batch

    def stops_at_the_third(*arguments, **keywords):
        sizes.append(len(arguments[3]))
        if len(sizes) == 3:
            raise KeyboardInterrupt
        return draw_batch(*arguments, **keywords)

    monkeypatch.setattr(drawing, "draw_batch", stops_at_the_third)
    assert draw(nano_checkpoint, *options, "--output", folder) == 130
    assert len(manifest(folder)) == 4
    (folder / "red-1.png").unlink()
    unfinished_path(folder / "2-0.png", 2**22 + 1).write_bytes(b"half an image")  # of a process that was killed
    sizes.append(0)  # so that none of the rest is the third
    assert draw(nano_checkpoint, *options, "--output", folder) == 0
    assert sizes[4:] == [2, 2, 2]  # the batch with the lost image and the two that were not begun
    assert contents(folder) == whole


def test_images_depend_on_neither_the_batch_nor_the_order(nano_checkpoint, prompts, tmp_path) -> None:
    assert draw(nano_checkpoint, "--prompts", prompts, "--output", tmp_path / "a", "--batch-size", 4) == 0
    others = write_lines(tmp_path / "others.jsonl", [LINES[2], {"prompt": "a cat"}, {**LINES[1], "id": "x"}, LINES[0]])
    assert draw(nano_checkpoint, "--prompts", others, "--output", tmp_path / "b", "--batch-size", 1) == 0
    for one, other in (("red-0", "red-0"), ("2-0", "x-0"), ("3-0", "1-0")):
        difference = np.abs(pixels(tmp_path / "a" / f"{one}.png") - pixels(tmp_path / "b" / f"{other}.png"))
        assert difference.max() <= 1
    assert np.abs(pixels(tmp_path / "b" / "2-0.png") - pixels(tmp_path / "a" / "2-0.png")).max() > 1


def test_each_setting_reaches_the_image(nano_checkpoint, tmp_path) -> None:
    base = ("--prompt", "a red circle", "--temperature", "1")
    variants = {
        "base": (),
        "seed": ("--seed", "1"),
        "cfg": ("--cfg", "1"),
        "temperature": ("--temperature", "0"),
        "decoder": ("--decoder-guidance", "4"),
        "steps": ("--steps", "3"),
        "dtype": ("--dtype", "bfloat16"),
    }
    for name, options in variants.items():
        assert draw(nano_checkpoint, *base, *options, "--output", tmp_path / f"{name}.png") == 0
    drawn = {name: pixels(tmp_path / f"{name}.png") for name in variants}
    for name in variants:
        assert name == "base" or np.abs(drawn[name] - drawn["base"]).max() > 1, name
    assert draw(nano_checkpoint, *base, "--upsampling-ratio", "2", "--output", tmp_path / "large.png") == 0
    assert pixels(tmp_path / "large.png").shape == (128, 128, 3)
    budget = ("--images-per-prompt", 3, "--memory-budget-gb", "0.0002", "--output", tmp_path / "budget")
    assert draw(nano_checkpoint, *base, *budget) == 0
    assert np.abs(pixels(tmp_path / "budget" / "a-red-circle-0.png") - drawn["base"]).max() <= 1


def test_other_weights_are_noticed(nano_checkpoint, tmp_path, capsys) -> None:
    checkpoint = Path(shutil.copytree(nano_checkpoint, tmp_path / "checkpoint"))
    options = ("--prompt", "a red circle", "--output", tmp_path / "drawn")
    assert draw(nano_checkpoint, *options) == 0
    assert draw(checkpoint, *options) == 0  # the same weights elsewhere
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["output_layer_vistok.1.weight"] += 0.1
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert draw(checkpoint, *options) == 2
    assert "was drawn with weights" in capsys.readouterr().err


def test_a_lone_prompt_names_its_files() -> None:
    assert slug("A red circle, please!") == "a-red-circle-please"
    assert slug("一只猫") == "一只猫"
    names = {slug(prompt) for prompt in ("!", "?", "long " * 20, "long " * 21, "一" * 80, "一" * 81)}
    assert len(names) == 6
    assert all(name and len(f"{name}-10.png".encode()) < 100 and "/" not in name for name in names)


# edit ----------------------------------------------------------------------------------------------------------------


def test_an_edit_has_the_shape_of_its_picture_and_sees_it(nano_checkpoint, picture, tmp_path, monkeypatch) -> None:
    seen, build = [], drawing.build_visual_prompt

    def watching(*arguments, **keywords):
        seen.extend(keywords["input_images"])
        return build(*arguments, **keywords)

    monkeypatch.setattr(drawing, "build_visual_prompt", watching)
    edit = ("--prompt", "make it night", "--image", picture, "--output", tmp_path / "night.png")
    assert draw(nano_checkpoint, *edit, command="edit") == 0
    assert pixels(tmp_path / "night.png").shape == (96, 128, 3)
    once = load_picture(picture).resize((128, 96), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(seen[0]), np.asarray(once))

    Image.new("RGB", (128, 96), "white").save(tmp_path / "white.png")
    edit = ("--prompt", "make it night", "--image", tmp_path / "white.png", "--output", tmp_path / "other.png")
    assert draw(nano_checkpoint, *edit, command="edit") == 0
    assert np.abs(pixels(tmp_path / "night.png") - pixels(tmp_path / "other.png")).max() > 1


def test_edits_from_a_file_with_their_own_pictures(nano_checkpoint, picture, tmp_path, capsys) -> None:
    (tmp_path / "lists").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "lists" / "red.png")
    lines = [{"prompt": "night", "image": "red.png"}, {"prompt": "night"}, {"prompt": "day", "height": 32, "width": 64}]
    edits = write_lines(tmp_path / "lists" / "edits.jsonl", lines)
    options = ("--prompts", edits, "--output", tmp_path / "edited", "--dtype", "bfloat16")
    assert draw(nano_checkpoint, *options, command="edit") == 2
    assert f"{edits}, line 2: there is no image to edit" in capsys.readouterr().err
    assert draw(nano_checkpoint, *options, "--image", picture, command="edit") == 0
    shapes = [pixels(tmp_path / "edited" / f"{name}-0.png").shape[:2] for name in (1, 2, 3)]
    assert shapes == [(64, 64), (96, 128), (32, 64)]
    first = manifest(tmp_path / "edited")[0]
    assert (first["image"], first["model"]) == ("red.png", nano_checkpoint.name)
    assert str(tmp_path) not in (tmp_path / "edited" / "manifest.jsonl").read_text()
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "lists" / "red.png")
    assert draw(nano_checkpoint, *options, "--image", picture, command="edit") == 2
    assert "was drawn with sha256" in capsys.readouterr().err


def test_sizes_of_edits() -> None:
    def of(own_width: int, own_height: int, **asked: int) -> tuple[int, int]:
        return editing_size(Image.new("RGB", (own_width, own_height)), 32, 512**2, **asked)

    assert of(512, 512) == (512, 512)
    assert of(300, 200) == (192, 288)
    assert of(7, 500) == (512, 32)
    assert of(4000, 3000) == (448, 576)
    assert of(1000, 800, height=256) == (256, 320)
    assert of(1000, 800, width=256) == (192, 256)
    assert of(1000, 800, width=256, height=512) == (512, 256)
    for width, height in [(1999, 301), (513, 512), (10_000, 10), (777, 778)]:
        drawn = of(width, height)
        assert drawn[0] * drawn[1] <= 512**2
        assert not any(side % 32 for side in drawn)


def test_pictures_are_read_upright_and_on_white(tmp_path) -> None:
    photo = Image.new("RGB", (40, 20), "red")
    turned = Image.Exif()
    turned[0x0112] = 6
    photo.save(tmp_path / "photo.jpg", exif=turned)
    assert load_picture(tmp_path / "photo.jpg").size == (20, 40)
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert load_picture(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


# chat ----------------------------------------------------------------------------------------------------------------


def test_an_answer_is_what_the_model_cards_snippet_gives(nano_checkpoint, picture, capsys) -> None:
    assert chat(nano_checkpoint, "--image", picture, "--image", picture, "--prompt", "What is in this image?") == 0
    answer = capsys.readouterr().out
    model = UniARForConditionalGeneration.from_pretrained(nano_checkpoint)
    processor = AutoProcessor.from_pretrained(nano_checkpoint)
    image = {"type": "image", "image": load_picture(picture)}
    messages = [{"role": "user", "content": [image, image, {"type": "text", "text": "What is in this image?"}]}]
    inputs = processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert answer == processor.tokenizer.decode(tokens, skip_special_tokens=True) + "\n"

    assert chat(nano_checkpoint, "--prompt", "What is in this image?") == 0
    assert capsys.readouterr().out != answer


def test_a_conversation_from_the_standard_input_remembers(nano_checkpoint, monkeypatch, capsys) -> None:
    def converse(text: str) -> list[str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        assert chat(nano_checkpoint) == 0
        return capsys.readouterr().out

    both = converse("a red circle\n\n<|image_pad|> is refused\nwhat is it?\n")
    first, second = converse("a red circle\n"), converse("what is it?\n")
    assert both.startswith(first)
    assert len(both) > len(first)
    assert both != first + second


def test_answers_to_a_file_of_questions_resume(nano_checkpoint, picture, tmp_path, capsys) -> None:
    lines = [{"prompt": "What is it?", "image": picture.name, "id": "set/a"}, {"prompt": "One circle?"}]
    lines += [{"prompt": "Which colour?", "image": [picture.name, picture.name]}]
    questions = write_lines(tmp_path / "questions.jsonl", lines)
    output = tmp_path / "out" / "answers.jsonl"
    options = ("--prompts", questions, "--output", output, "--temperature", "1", "--seed", "3")
    assert chat(nano_checkpoint, *options) == 0
    assert capsys.readouterr().out == f"3 answers in {output}\n"
    whole = output.read_bytes()
    answers = [json.loads(line) for line in whole.splitlines()]
    assert [line["id"] for line in answers] == ["set/a", "2", "3"]
    assert [len(line["image"]) for line in answers] == [1, 0, 2]
    assert all(line["answer"] and line["truncated"] for line in answers)

    for kept in (whole[:-40], whole[: whole.index(b"\n") + 4], whole[:-1], b""):  # cut short, as by a kill
        output.write_bytes(kept)
        assert chat(nano_checkpoint, *options) == 0
        assert output.read_bytes() == whole
    other = tmp_path / "other.jsonl"
    assert chat(nano_checkpoint, "--prompts", questions, "--output", other, "--temperature", "1", "--seed", "4") == 0
    assert all(new["answer"] != old["answer"] for new, old in zip(map(json.loads, other.open()), answers, strict=True))
    capsys.readouterr()
    assert chat(nano_checkpoint, *options, "--seed", "4") == 2
    assert f"{output}, line 1: id 'set/a' was answered with seed 3, not 4" in capsys.readouterr().err


def test_a_file_of_something_else_is_left_alone(nano_checkpoint, tmp_path, capsys) -> None:
    lines = [{"id": "1", "prompt": "One?"}, {"id": "2", "prompt": "Two?"}]
    for ending in ("\n", ""):
        questions = write_lines(tmp_path / "questions.jsonl", lines)
        questions.write_text(questions.read_text().rstrip() + ending)
        before = questions.read_bytes()
        assert chat(nano_checkpoint, "--prompts", questions, "--output", questions) == 2
        assert "line 1 is not an answer that this command wrote" in capsys.readouterr().err
        assert questions.read_bytes() == before


# All -----------------------------------------------------------------------------------------------------------------


def test_random_state_is_left_alone(nano_checkpoint, tmp_path) -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    assert draw(nano_checkpoint, "--prompt", "a", "--output", tmp_path / "a.png") == 0
    assert chat(nano_checkpoint, "--prompt", "a", "--temperature", "1") == 0
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_is_not_finite_is_no_image(nano_checkpoint, tmp_path, capsys) -> None:
    checkpoint = Path(shutil.copytree(nano_checkpoint, tmp_path / "checkpoint"))
    options = ("--prompt", "a red circle", "--output", tmp_path / "a.png")
    assert draw(nano_checkpoint, *options, "--decoder-guidance", "1e38") == 1
    assert "decoding sample 0 in torch.float32 gave NaN or infinite pixels." in capsys.readouterr().err
    weights = load_file(checkpoint / "model.safetensors")
    save_file(
        weights | {"output_layer_vistok.1.weight": weights["output_layer_vistok.1.weight"] * math.nan},
        checkpoint / "model.safetensors",
    )
    assert draw(checkpoint, *options) == 1
    assert "the model draws from NaN or infinite logits in float32; its weights are damaged." in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()
