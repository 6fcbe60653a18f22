"""What docs/python.md shows runs; every link between the documents leads somewhere."""

import re

import pytest
from support.fresh_process import ROOT, run_fresh
from support.warm_process import run_warm

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))


def test_the_python_page_runs(tmp_path):
    for name in ("configs", "assets"):
        (tmp_path / name).symlink_to(ROOT / name)
    training, scoring = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), flags=re.DOTALL)
    trained = run_warm("-c", training, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert "runs/python/final {0: tensor(" in trained.stdout
    scored = run_warm("-c", scoring, cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr[-3000:]
    assert scored.stdout.startswith("{'color': 1.0, 'sharpness': 0.0}")


def test_importing_the_packages_is_cheap(tmp_path):
    ended = run_fresh("import sys, rl, uniar; print('torch' in sys.modules)", tmp_path)
    assert ended.stdout.strip() == "False", ended.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if "://" in target or path.startswith("mailto:"):
            continue
        linked = (page.parent / path) if path else page
        assert linked.exists(), target
        if anchor and linked.suffix == ".md":
            heads = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), flags=re.MULTILINE)
            words = [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads]
            assert anchor in words, target


def test_every_document_is_in_the_index():
    """In a reading order, and with the question that it answers."""
    orders, questions = (ROOT / "docs" / "index.md").read_text().split("| page | what it answers |")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or (page.name in orders and page.name in questions), page.name
