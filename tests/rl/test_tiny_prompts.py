"""`uniar-rl prompts`: files that the project's readers take, made of a seed."""

import json
from collections import Counter

import pytest
from PIL import Image

from rewards.contract.base import RewardBatch
from rewards.geneval.request import SKILLS
from rl.cli import main
from rl.data.prompts import load_prompts
from rl.data.questions import load_questions
from rl.tiny import prompts_command
from rl.tiny.shapes import Shapes

NUMBERS = ["--train", "60", "--held-out", "30", "--questions", "20", "--edits", "16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts") / "shapes"
    assert main(["prompts", "--output", str(folder), *NUMBERS]) == 0
    return folder


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_file_loads(folder):
    files = folder.glob("*.jsonl")
    loaders = {path: load_questions if path.name.startswith("questions") else load_prompts for path in files}
    counts = {path.name: len(load(path)) for path, load in loaders.items()}
    assert counts == {
        "train.jsonl": 60,
        "held_out.jsonl": 30,
        "questions_train.jsonl": 20,
        "questions_held_out.jsonl": 20,
        "edits_train.jsonl": 16,
        "edits_held_out.jsonl": 16,
    }
    assert len(list((folder / "images").iterdir())) == 2 * (20 + 2 * 16)


def test_captions(folder):
    records = {split: load_prompts(folder / f"{split}.jsonl") for split in ("train", "held_out")}
    prompts = {split: [record.prompt for record in records[split]] for split in records}
    assert all(len(set(prompts[split])) == len(prompts[split]) for split in prompts)
    assert not set(prompts["train"]) & set(prompts["held_out"])
    assert Counter(record.metadata["tag"] for record in records["train"]) == dict.fromkeys(SKILLS, 10)
    assert {record.task for record in records["train"]} == {"draw"}
    assert records["held_out"][3].id == "held_out-00003"


def test_questions_have_a_picture_and_an_answer(folder):
    records = load_questions(folder / "questions_held_out.jsonl")
    assert len(records) == 20
    for record in records:
        assert record.load_image().size == (64, 64)
        assert record.question
        assert record.answer
    prompts = load_prompts(folder / "questions_held_out.jsonl")  # as they are for episodes that answer
    assert [each.prompt for each in prompts] == [record.question for record in records]
    assert {each.task for each in prompts} == {"answer"}
    assert all(each.metadata["answer"] == record.answer for each, record in zip(prompts, records, strict=True))


def test_the_reward_judges_the_pictures_of_edits(folder):
    records = load_prompts(folder / "edits_held_out.jsonl")
    sources = [record.load_image() for record in records]
    targets = [Image.open(folder / record.metadata["target"]) for record in records]
    for images, wanted in ((sources, 0), (targets, 1)):
        batch = RewardBatch([record.prompt for record in records], images, metadata=[each.metadata for each in records])
        assert {each["score"] for each in Shapes().score(batch)} == {wanted}


def test_the_seed_decides(folder, tmp_path):
    assert main(["prompts", "--output", str(tmp_path / "same"), *NUMBERS]) == 0
    assert contents(tmp_path / "same") == contents(folder)
    assert main(["prompts", "--output", str(tmp_path / "other"), *NUMBERS, "--seed", "1"]) == 0
    assert contents(tmp_path / "other")["train.jsonl"] != contents(folder)["train.jsonl"]
    fewer = ["--train", "10", "--held-out", "30", "--questions", "5", "--edits", "0"]
    assert main(["prompts", "--output", str(tmp_path / "fewer"), *fewer]) == 0
    ours, theirs = contents(tmp_path / "fewer"), contents(folder)
    assert ours["held_out.jsonl"] == theirs["held_out.jsonl"]
    assert theirs["train.jsonl"].startswith(ours["train.jsonl"])
    assert "edits_train.jsonl" not in ours


def test_skills(tmp_path):
    only = ["--skills", "colors", "counting", "--train", "8", "--held-out", "0", "--questions", "0", "--edits", "0"]
    assert main(["prompts", "--output", str(tmp_path), *only]) == 0
    tags = [json.loads(line)["metadata"]["tag"] for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert tags == ["colors", "counting"] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train", "-1"], "--train is -1; it cannot be negative."),
        (["--skills", "color"], "--skills has 'color'; known: single_object, two_object,"),
        (["--skills", "colors", "--train", "100000"], "more than there are different ones for train; ask for at"),
    ],
)
def test_wrong_arguments(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(prompts_command, "TRIES", 2)  # or finding out that there are no more takes seconds
    assert main(["prompts", "--output", str(tmp_path / "new"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_folder_in_use_is_left_alone(tmp_path, capsys):
    (tmp_path / "train.jsonl").write_text("mine")
    assert main(["prompts", "--output", str(tmp_path)]) == 2
    assert f"--output {tmp_path} is not empty; name a new folder." in capsys.readouterr().err
    assert (tmp_path / "train.jsonl").read_text() == "mine"
    assert main(["prompts", "--output", str(tmp_path / "train.jsonl" / "deeper")]) == 2
    assert "cannot be written: Not a directory" in capsys.readouterr().err


def test_help_says_what_is_written(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["prompts", "--help"])
    out = capsys.readouterr().out
    assert "questions_SPLIT.jsonl" in out
    assert "default: 2000" in out
