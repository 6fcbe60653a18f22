"""docs/rewards.md is run as it stands: its files written, its Python run, its output compared, its recipes built."""

import contextlib
import inspect
import io
import re
import sys
from pathlib import Path

import yaml

from rewards import RewardSuite
from rewards.registry import resolve

PAGE = (Path(__file__).parents[1] / "docs" / "rewards.md").read_text(encoding="utf-8")
LISTED = ("clip_score", "pickscore", "hpsv2", "image_reward", "aesthetic", "vqa_score", "self_vqa", "geneval", "ocr")
LISTED += ("compressibility", "color", "sharpness", "diversity")
BLOCK = re.compile(r"(?:<!-- file: (?P<file>\S+) -->\n)?```(?P<language>\w+)\n(?P<body>.*?)```\n", re.DOTALL)


def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    blocks = [match.groupdict() for match in BLOCK.finditer(PAGE)]
    assert [block["language"] for block in blocks].count("text") == 5
    before = set(sys.modules)
    for block in blocks:  # recipes above a file of the tutorial may name it
        if block["file"]:
            Path(block["file"]).write_text(block["body"], encoding="utf-8")
    namespace, printed, suites = {}, "", 0
    try:
        for block in blocks:
            if block["language"] == "python" and not block["file"]:
                with contextlib.redirect_stdout(io.StringIO()) as stdout:
                    exec(compile(block["body"], "docs/rewards.md", "exec"), namespace)
                printed = stdout.getvalue()
            elif block["language"] == "text":
                assert printed == block["body"]
                printed = ""
            elif block["language"] == "yaml":
                RewardSuite.from_recipe(yaml.safe_load(block["body"])["rewards"])
                suites += 1
            assert not (block["language"] != "python" and printed), "output that the page does not show"
    finally:
        for name in set(sys.modules) - before:  # the page's files must not outlive their folder
            if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]
    assert suites == 4


def test_the_table_lists_every_reward_with_all_its_parameters():
    for name in LISTED:
        [row] = re.findall(rf"^\| `{name}` \|.*\|.*\|$", PAGE, re.MULTILINE)
        assert re.findall(r"`(\w+)` \(", row) == list(inspect.signature(resolve(name)).parameters)
