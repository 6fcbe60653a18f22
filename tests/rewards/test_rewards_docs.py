"""docs/rewards.md is run as it stands: its files written, its commands and its Python run, its output compared, its
recipes built."""

import argparse
import contextlib
import inspect
import io
import re
import shlex
import sys
from pathlib import Path

import yaml
from PIL import Image

from rewards import RewardSuite
from rewards.commands import arguments
from rewards.contract import registry
from rewards.contract.registry import origin_of, resolve, reward_names
from rl.cli import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?:<!-- file: (?P<file>\S+) -->\n)?```(?P<language>\w+)\n(?P<body>.*?)```\n", re.DOTALL)
SHORT = ["trainer.max_steps=1", "trainer.save_strategy=no", "evaluate.prompts=null"]
MILLISECONDS = re.compile(r"[\d.]+(e-\d+)? ms per sample")


def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))  # the page's own rewards end with it
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    prepare_pictures(tmp_path)
    blocks = [match.groupdict() for match in BLOCK.finditer(PAGE)]
    before = set(sys.modules)
    for block in blocks:  # recipes above a file of the tutorial may name it
        if block["file"]:
            Path(block["file"]).write_text(block["body"], encoding="utf-8")
    namespace, done = {}, dict.fromkeys(("python", "bash", "text", "yaml", "toml"), 0)
    try:
        for block, following in zip(blocks, [*blocks[1:], None], strict=True):
            language, body = block["language"], block["body"]
            done[language] += 1
            if language == "yaml":
                RewardSuite.from_recipe(yaml.safe_load(body)["rewards"])
            if language not in ("python", "bash") or block["file"]:
                continue
            with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(printed):
                if language == "bash":
                    type_in(body)
                else:
                    exec(compile(body, "docs/rewards.md", "exec"), namespace)
            shown = following["body"] if following and following["language"] == "text" else None
            if shown is not None:
                assert MILLISECONDS.sub("N", printed.getvalue()) == MILLISECONDS.sub("N", shown)
            else:
                assert language == "bash" or not printed.getvalue(), "output that the page does not show"
    finally:
        for name in set(sys.modules) - before:  # the page's files must not outlive their folder
            if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]
    assert done == {"python": 8, "bash": 6, "text": 6, "yaml": 9, "toml": 1}


def prepare_pictures(folder):
    """What the page's examples of commands name."""
    (folder / "samples").mkdir()
    for name in ("kettle.png", "samples/1.png", "samples/2.png"):
        Image.new("RGB", (32, 32), "red").save(folder / name)
    (folder / "drawn.jsonl").write_text('{"image": "kettle.png", "prompt": "a red kettle"}\n')


def type_in(body):
    """Runs the lines of a block, which all are commands of this project; training is cut short."""
    for line in body.splitlines():
        program, *words = shlex.split(line, comments=True)
        assert program == "uniar-rl"
        if words[:2] == ["rewards", "serve"]:
            parser = argparse.ArgumentParser()  # it would not end; tests/rewards/test_rewards_fuzz.py starts one
            arguments.rewards(parser)
            parser.parse_args(words[1:])
            continue
        status = main([*words, *(SHORT if words[0] == "train" else ())])
        assert status == (2 if "colour=red" in words else 0), line


def test_the_table_lists_every_reward_with_all_its_parameters():
    rows = dict(re.findall(r"^\| `(\w+)` (\|.*\|.*\|)$", PAGE, re.MULTILINE))
    for name in (name for name in reward_names() if origin_of(name) == "built in"):
        parameters = inspect.signature(resolve(name)).parameters.values()
        assert re.findall(r"`(\w+)` \(", rows[name]) == [parameter.name for parameter in parameters]
