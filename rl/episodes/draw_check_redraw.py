"""A picture, what is wrong with it in words, and a second picture as an edit of the first."""

from collections.abc import Generator
from typing import Any

from rl.data.prompts import PromptRecord
from rl.episodes.requests import Draw, Request, Write, turns
from uniar.conversations import Message

QUESTION = "This picture was asked for: {} What is wrong with it?"


@turns("picture", "text", "picture")
def draw_check_redraw(record: PromptRecord) -> Generator[Request, Any, None]:
    """Three turns. The model reads and edits its own bits; the second picture is the sample's."""
    drawing = yield Draw(record.prompt, record.pictures)
    found = yield Write([Message("user", (drawing, QUESTION.format(record.prompt)))])
    yield Draw(f"{record.prompt}\n{found}" if found else record.prompt, (drawing,))
