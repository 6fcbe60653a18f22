"""Small prompt files, and how training and the commands read them."""

import argparse
import json
from pathlib import Path

import pytest

from rl.data.prompts import load_prompts
from uniar.commands.requests import Question, read_questions
from uniar.errors import UserError


def write(path: Path, content: str | bytes | list | dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str | bytes):
        content = json.dumps(content, ensure_ascii=False)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def questions(path: Path, prompt_key: str | None = None) -> list[Question]:
    """As `uniar-rl generate --prompts` reads them."""
    arguments = argparse.Namespace(prompt=None, prompts=path, prompt_key=prompt_key, image_key=None, image_root=None)
    return read_questions(arguments, ())


def asked(path: Path, prompt_key: str | None = None) -> dict[str, str]:
    """Names and prompts of `questions`."""
    return {question.name: question.prompt for question in questions(path, prompt_key)}


def refusal(path: Path, **options) -> str:
    with pytest.raises(UserError) as error:
        load_prompts(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)
