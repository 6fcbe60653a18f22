"""docs/scaling.md and the benchmarks behind it."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "scaling.md"


@pytest.mark.slow
def test_the_computed_tables_are_current():
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "scaling_plan.py")],
        env={"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=1500,
    )
    page = PAGE.read_text()
    tables = done.stdout.strip().split("\n\n")
    assert len(tables) == 4
    for table in tables:
        assert table in page, f"run: python benchmarks/scaling_plan.py\n{table}"


def test_files_that_the_page_names_are_there():
    words = [word.strip("`.,;()") for word in PAGE.read_text().split() if word.startswith("`tests/")]
    assert len(set(words)) > 5
    assert all((ROOT / word).is_file() for word in words)


@pytest.mark.slow
def test_cases_are_measured(monkeypatch):
    spec = importlib.util.spec_from_file_location("scaling", ROOT / "benchmarks" / "scaling.py")
    scaling = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "scaling", scaling)
    spec.loader.exec_module(scaling)
    found = scaling.measure([scaling.BASE, scaling.Case("two", processes=2)], rounds=1, updates=4, preset="nano")
    table = scaling.table(found).splitlines()
    assert len(table) == 4
    assert "| base | " in table[2]
    assert all(len(case.seconds) == len(case.processor) == 2 for case in found.values())
    assert all(value > 0 for case in found.values() for value in (*case.seconds, *case.processor, *case.memory))
