"""A picture of a prompt or, where the record has a picture, an edit of it."""

from collections.abc import Generator
from typing import Any

from rl.data.prompts import PromptRecord
from rl.episodes.requests import Draw, turns


@turns("picture")
def draw(record: PromptRecord) -> Generator[Draw, Any, None]:
    """One turn: the picture."""
    yield Draw(record.prompt, record.pictures)
