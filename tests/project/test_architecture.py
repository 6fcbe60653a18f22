"""docs/architecture.md lists each file of each room, and no file that is not there."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def listed(room: str) -> list[str]:
    """The names and patterns in the first column of a room's table."""
    table = PAGE.split(f"| in `{room}/` | holds |\n")[1].split("\n\n")[0]
    cells = [line.split(" | ")[0] for line in table.splitlines()[1:]]
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize("room", ["uniar", "rewards", "rl", "tiny"])
def test_every_file_is_listed_once(room):
    names = listed(room)
    files = [file.name for file in (ROOT / room).glob("*.py") if file.name != "__init__.py"]
    for file in files:
        assert [name for name in names if fnmatch(file, name)], f"{room}/{file}"
    for name in names:
        assert any((ROOT / room).glob(name.rstrip("/"))), f"{room}/{name}"
    assert len(names) == len(set(names))


def test_arrows_run_one_way():
    """No room imports one that comes after it."""
    order = ["uniar", "rewards", "rl", "tiny"]
    for place, room in enumerate(order):
        later = "|".join(order[place + 1 :])
        for file in (ROOT / room).rglob("*.py"):
            pattern = rf"^\s*(?:from|import) ({later})\b"
            found = re.findall(pattern, file.read_text(), flags=re.MULTILINE) if later else []
            assert not found, f"{file.relative_to(ROOT)} imports {found}"
