"""docs/architecture.md and the folders say the same; rooms and files stay small; what comments point to is there."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
TOP = ("uniar", "inference", "rewards", "rl")
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")


def rows_after(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading of the page, without its head."""
    lines = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0].splitlines()
    table = [line for line in lines if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def line_count(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_one_step_is_few_files_and_few_lines():
    walk = {cells[0].strip("`"): int(cells[1]) for cells in rows_after("One step, read in order")}
    assert walk == {name: line_count(ROOT / name) for name in walk}
    assert next(iter(walk)) == "rl/trainer/step.py"
    assert len(walk) <= 8
    assert sum(walk.values()) <= 1000


def test_the_page_lists_every_room_with_its_purpose():
    listed = {cells[0].strip("`/"): cells[1] for cells in rows_after("Rooms")}
    found = {}
    for init in ROOT.glob("*/**/__init__.py"):
        room = init.parent.relative_to(ROOT)
        if room.parts[0] in TOP:
            purpose = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))).split("\n\n")[0]
            found[str(room)] = " ".join(purpose.split())
    assert listed == found


def test_arrows_run_one_way():
    """The contracts of import-linter in pyproject.toml."""
    command = (
        "import sys; sys.argv[1:] = ['--no-cache']; from importlinter.cli import lint_imports_command as lint; lint()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "0 broken" in ended.stdout


@pytest.mark.parametrize("top", [*TOP, "tests"])
def test_rooms_and_files_are_small(top):
    for folder in {path.parent for path in (ROOT / top).rglob("*.py")}:
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        for path in files:
            assert line_count(path) <= 400, path
        init = folder / "__init__.py"
        if top != "tests" and (len(files) > 12 or sum(map(line_count, files)) > 1300):
            assert "\n\n" in ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))), f"{folder}: say why"


def test_paths_in_comments_and_documents_are_there():
    pattern = re.compile(
        r"(?<![\w/.-])((?:uniar|rl|rewards|tests|docs|configs|launch|benchmarks)/[\w/.-]*\.(?:py|md|sh))\b"
    )
    for name in TRACKED:
        if name.endswith((".py", ".md")) and not name.startswith("tests/golden") and name != "CHANGELOG.md":
            for path in pattern.findall((ROOT / name).read_text(encoding="utf-8")):
                assert (ROOT / path).exists(), f"{name} points to {path}"
