"""`uniar-rl init`: what it writes is a recipe that fits, or nothing."""

import io
import json
import sys

import pytest

from rl.cli import main
from rl.commands import init
from rl.config.recipe import load_recipe


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lines = [json.dumps({"prompt": f"a shop sign {n}", "metadata": {"text": "OPEN"}}) for n in range(40)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_options_alone_give_a_recipe_on_the_first_base_that_fits(folder, capsys):
    words = "--prompts prompts.jsonl --rewards compressibility --gpus 1 --memory 80 --held-out prompts.jsonl"
    assert main(["init", "recipes/mine.yaml", *words.split()]) == 0
    said = capsys.readouterr().out
    assert "from uniar_sft_lora.yaml" in said
    assert "train:          uniar-rl train recipes/mine.yaml" in said
    recipe = load_recipe("recipes/mine.yaml")
    assert (recipe.data.prompts, recipe.evaluate.prompts) == ("prompts.jsonl", "prompts.jsonl")
    assert "prompts: ../prompts.jsonl" in (folder / "recipes" / "mine.yaml").read_text()
    assert recipe.model.lora is not None
    assert [entry["use"] for entry in recipe.rewards] == ["compressibility"]
    assert main(["init", "recipes/mine.yaml", *words.split()]) == 2
    assert "is there already" in capsys.readouterr().err


def test_what_is_not_given_is_asked(folder, capsys, monkeypatch):
    answers = io.StringIO("tiny\n\n\n1\n16\n")
    answers.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", answers)
    assert main(["init", "tiny.yaml"]) == 0
    said = capsys.readouterr().out
    assert "GiB of each GPU [" in said
    assert "from quickstart.yaml" in said
    recipe = load_recipe("tiny.yaml")
    assert recipe.rewards[0]["use"] == "rl.tiny.shapes:Shapes"
    assert recipe.evaluate.prompts is not None
    words = "--model tiny --prompts prompts.jsonl --rewards compressibility --gpus 1 --memory 16"
    assert main(["init", "own.yaml", *words.split()]) == 0
    recipe = load_recipe("own.yaml")
    assert (recipe.evaluate.prompts, recipe.eval_rewards) == (None, [])


def test_tiny_is_the_model_though_a_folder_has_the_name(folder):
    (folder / "tiny").mkdir()
    assert main(["init", "sub/mine.yaml", "--model", "tiny", "--gpus", "1", "--memory", "16"]) == 0
    assert "path: tiny\n" in (folder / "sub" / "mine.yaml").read_text()
    assert load_recipe("sub/mine.yaml").model.path.endswith("assets/uniar-tiny")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "--prompts is missing"),
        ("--prompts none.jsonl", "none.jsonl"),
        ("--prompts prompts.jsonl --gpus none", "'none' is not a number of GPUs"),
        (
            "--prompts prompts.jsonl --gpus 0",
            "'0' is not a number of GPUs, 1 or more; without any, 1 stands for the CPU.",
        ),
        ("--prompts prompts.jsonl --memory -3", "'-3' is not a number of GiB"),
        ("--prompts prompts.jsonl --rewards compresibility", "Did you mean 'compressibility'?"),
        ("--model tiny --memory 2.1", "does not fit into 2.1 GiB on 1 GPU(s)"),
    ],
)
def test_what_cannot_be_a_recipe_leaves_none(words, said, folder, capsys):
    assert main(["init", "mine.yaml", "--gpus", "1", *words.split()]) == 2
    written = capsys.readouterr().err
    assert said in written
    assert "mine.yaml" not in written
    assert not (folder / "mine.yaml").exists()


def test_candidates_train_most_first():
    several, one = ([base for base, _ in init._candidates("x/y", gpus)] for gpus in (8, 1))
    assert several == ["uniar_sft_512.yaml", "uniar_sft_zero3.yaml", *["uniar_sft_lora.yaml"] * 2]
    assert one == several[2:]
