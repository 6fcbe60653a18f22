"""docs/episodes.md: what it shows is run as it stands there."""

import re
import shlex
import textwrap
from pathlib import Path

import pytest
import yaml

from rl.cli import main
from rl.config.recipe import load_recipe
from rl.data.prompts import PromptRecord
from rl.episodes.registry import EPISODES, Episodes
from rl.episodes.requests import Draw
from rl.records.rows import read_rows

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "episodes.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.M | re.S)
    return [textwrap.dedent(block).replace("\\\n", " ") for block in found]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """With the page's episode, and the recipes and the model beside it."""
    [episode] = blocks("python")
    (tmp_path / episode.splitlines()[0].removeprefix("# ")).write_text(episode)
    for shown in ("assets", "configs"):
        (tmp_path / shown).symlink_to(ROOT / shown)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_table_has_all_episodes_with_their_turns():
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\w, ]+) \|", PAGE, flags=re.M))
    assert list(rows) == list(EPISODES)
    for name, turns in rows.items():
        assert set(turns.split(", ")) == set(EPISODES[name].turns), name
    for name in EPISODES:
        lines = (ROOT / "rl" / "episodes" / f"{name}.py").read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 30, name


def test_its_recipes_are_read(folder):
    for number, block in enumerate(blocks("yaml")):
        (folder / f"{number}.yaml").write_text(
            yaml.safe_dump({**yaml.safe_load(block), "base": "configs/quickstart.yaml"})
        )
        recipe = load_recipe(folder / f"{number}.yaml", ["rollout.height=64", "rollout.width=64"])
        Episodes(recipe.rollout.episodes, folder).turns(recipe.rollout.episodes)
    assert number == 2


def test_its_episode_lets_the_model_choose(folder):
    episode = Episodes({"default": "best_of_two.py:best_of_two"}, folder)
    played = episode.of(None)(PromptRecord("a cat"))
    assert [next(played), played.send("one")] == [Draw("a cat")] * 2
    asked = played.send("two")
    assert asked.messages[0].parts[:2] == ("one", "two")
    assert played.send("the first") == Draw("a cat", pictures=["one"])


def test_its_commands_run(folder, capsys):
    evaluate, train = (shlex.split(command) for block in blocks("bash") for command in block.splitlines() if command)
    assert main(evaluate[1:]) == 0, capsys.readouterr().err
    [file] = (folder / "scores").glob("**/*.parquet")
    rows = read_rows(file)
    assert len(rows) == 8
    assert set(rows["episode"].to_pylist()) == {"best_of_two.py:best_of_two"}
    assert all(len(texts) == 1 for texts in rows["texts"].to_pylist())
    assert train[1] == "train"
    assert load_recipe(train[2], train[3:]).rollout.episodes == {"default": "best_of_two.py:best_of_two"}
