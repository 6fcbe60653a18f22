"""First what the picture should show, in words, then the picture."""

from collections.abc import Generator
from typing import Any

from rl.data.prompts import PromptRecord
from rl.episodes.requests import Draw, Request, Write, turns
from uniar.conversations import Message

QUESTION = "Describe in one or two sentences what a picture of this should show, and where: {}"


@turns("text", "picture")
def think_draw(record: PromptRecord) -> Generator[Request, Any, None]:
    """Two turns: a description, and a picture of the prompt with the description behind it."""
    thought = yield Write([Message("user", (*record.pictures, QUESTION.format(record.prompt)))])
    yield Draw(f"{record.prompt}\n{thought}" if thought else record.prompt, record.pictures)
