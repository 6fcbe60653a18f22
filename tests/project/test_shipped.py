"""What comes with the package is found from any folder, and all of it is in the wheel."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.fresh_process import ROOT

from rl.cli import main
from rl.config.recipe import load_recipe
from rl.trainer.build import held_out_prompts, held_out_questions, training_prompts
from uniar.checkpoint import resolve_checkpoint
from uniar.shipped_files import SHIPPED, TINY, shipped

RECIPES = sorted(file.name for file in (ROOT / "configs").glob("*.yaml"))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_and_its_files_are_found_from_any_folder(name, elsewhere):
    recipe = load_recipe(name)
    assert load_recipe(f"configs/{name}").output_dir == recipe.output_dir == f"runs/{Path(name).stem}"
    read = [recipe.evaluate.prompts, recipe.understanding.questions, recipe.trainer.get("deepspeed")]
    made = str(recipe.data.prompts).startswith("data/")  # by the user, or by a command that the recipe names
    read += [] if made else [recipe.data.prompts]
    for path in filter(None, read):
        assert Path(path).is_file()
    assert recipe.model.preset or recipe.model.path in ("ShareLab-SII/UniAR-SFT", str(SHIPPED / "assets/uniar-tiny"))


def test_the_quickstarts_prompts_are_read_from_any_folder(elsewhere):
    recipe = load_recipe("quickstart.yaml")
    counts = (len(found(recipe)) for found in (training_prompts, held_out_prompts, held_out_questions))
    assert tuple(counts) == (2000, 480, 200)


def test_uniar_tiny_has_a_name(elsewhere):
    assert resolve_checkpoint("tiny") == resolve_checkpoint("assets/uniar-tiny") == TINY
    assert (TINY / "model.safetensors").is_file()
    (elsewhere / "tiny").mkdir()
    assert resolve_checkpoint("tiny") == TINY  # a folder that is not a checkpoint
    (elsewhere / "tiny" / "config.json").write_text("{}")
    assert resolve_checkpoint("tiny") == Path("tiny")


def test_paths_start_from_the_recipe_that_has_them(elsewhere):
    (elsewhere / "recipes" / "data").mkdir(parents=True)
    for file in ("recipes/data/own.jsonl", "recipes/base.jsonl", "here.jsonl"):
        (elsewhere / file).write_text('{"prompt": "a red circle"}\n')
    base = "model: {path: tiny}\nrewards: [compressibility]\ndata: {prompts: base.jsonl}\n"
    (elsewhere / "recipes" / "base.yaml").write_text(base)
    mine = elsewhere / "recipes" / "data" / "mine.yaml"
    mine.write_text("base: ../base.yaml\nevaluate: {prompts: own.jsonl}\ntrainer: {deepspeed: deepspeed/zero2.json}\n")
    recipe = load_recipe(mine.relative_to(elsewhere))
    assert recipe.data.prompts == "recipes/base.jsonl"
    assert recipe.evaluate.prompts == "recipes/data/own.jsonl"
    assert recipe.trainer["deepspeed"] == str(SHIPPED / "configs/deepspeed/zero2.json")
    assert recipe.model.path == str(TINY)
    assert load_recipe(mine, ["data.prompts=here.jsonl"]).data.prompts == "here.jsonl"
    mine.write_text("base: uniar_sft_lora.yaml\ndata: {prompts: own.jsonl}\n")
    assert load_recipe(mine).model.lora.r == 32
    (elsewhere / "resumed.yaml").write_text(recipe.to_yaml())
    assert load_recipe("resumed.yaml").data == recipe.data


@pytest.mark.parametrize("name", ["", "..", "../pyproject.toml", "/etc/passwd", "none.yaml"])
def test_nothing_else_comes_with_it(name):
    assert shipped(name) is None


def test_a_recipe_that_is_nowhere_is_refused(elsewhere, capsys):
    assert main(["plan", "quikstart.yaml"]) == 2
    assert "quikstart.yaml" in capsys.readouterr().err


@pytest.mark.slow
def test_the_wheel_has_every_shipped_file_and_no_other(tmp_path):
    build = "import sys, setuptools.build_meta as build; print(build.build_wheel(sys.argv[1]))"
    copy = tmp_path / "source"
    kept = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    for name in filter(None, kept):
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            target.symlink_to(os.readlink(ROOT / name))
        else:
            target.write_bytes((ROOT / name).read_bytes())
    done = subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        names = set(wheel.namelist())
    expected = {f"uniar/shipped/{name}" for name in kept if name.startswith(("configs/", "assets/uniar-tiny/"))}
    assert {name for name in names if name.startswith("uniar/shipped/")} == expected
    rooms = ("inference/", "rewards/", "rl/", "uniar/")
    modules = {name for name in kept if name.endswith(".py") and name.startswith(rooms)}
    assert modules | {"uniar_rl.py"} <= names
    assert {"rl/plan/released.json", "rl/report/templates/page.html", "rl/py.typed"} <= names
