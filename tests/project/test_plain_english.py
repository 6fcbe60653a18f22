"""Turns of phrase that readers stumbled over stay out of the documents, help texts, errors and docstrings."""

import ast
import re
from pathlib import Path

import pytest
from support.fresh_process import ROOT

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "configs").glob("*.yaml")]
MODULES = [file for room in ("rewards", "rl", "uniar") for file in (ROOT / room).rglob("*.py")]
UNITS = "nats|bits|bytes|[kMG]i?B|ms|images|patches|pixels|prompts|samples|scores?|tokens|updates"
EACH = "batch|bit|code|GPU|group|image|patch|picture|process|prompt|rank|request|rollout|row|sample|second|step|token"
REFUSED = {
    rf"\b({UNITS}) an? (text |visual |trained )?({EACH}|update|weight)\b(?! (takes|holds|serves|at a))": "per",
    r"(?<![Tt]here )\b(is|are) no (?!business|longer|more|larger|reason)": "is not a …",
    r"[(;:,] a text\b( or\b| is needed|\))": "a string",
    r"\bobe(ys|dience)\b|\bwhat stood there\b|\bchassis\b": "the field's word",
}
SOUND = ("it scores a batch",)


def strings(file: Path) -> list[tuple[int, str]]:
    """Line and value of every string of a module, docstrings and the fixed parts of f-strings included."""
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return [
        (node.lineno, node.value) for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def found(text: str) -> list[str]:
    for sound in SOUND:
        text = text.replace(sound, "")
    flat = re.sub(r"\s+(# )?", " ", text)
    return [f"{m.group()!r}: write {better}" for worse, better in REFUSED.items() for m in re.finditer(worse, flat)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documents(page):
    assert found(page.read_text(encoding="utf-8")) == []


def test_strings_of_the_code():
    told = {f"{file.relative_to(ROOT)}:{line}": found(text) for file in MODULES for line, text in strings(file)}
    assert {place: faults for place, faults in told.items() if faults} == {}


@pytest.mark.parametrize(
    "phrase",
    ["0.1 nats a bit", "59 GiB a GPU", "one score a sample and reward", "x is no folder", "url is 3, a text or a list"],
)
def test_what_is_refused(phrase):
    assert len(found(phrase)) == 1
