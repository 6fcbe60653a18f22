"""The answer to a question, with or without a picture."""

from collections.abc import Generator
from typing import Any

from rl.data.prompts import PromptRecord
from rl.episodes.requests import Write, turns
from uniar.conversations import Message


@turns("text")
def answer(record: PromptRecord) -> Generator[Write, Any, None]:
    """One turn: the answer. The prompt is the question."""
    yield Write([Message("user", (*record.pictures, record.prompt))])
