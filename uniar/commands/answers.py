"""A JSONL file of answers, to which a run adds line by line and a later run goes on adding."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from uniar.commands.conversation import Answer
from uniar.commands.requests import Question
from uniar.drawn_files import difference
from uniar.errors import UserError
from uniar.reading.files import append_line, writing
from uniar.reading.json_lines import parse_json_lines
from uniar.reading.pictures import load_picture, picture_digest
from uniar.shareable import shareable

_BEGINNING = b'{"id": '
_OUTCOME = ("answer", "truncated")


@dataclass(frozen=True)
class AnswerSettings:
    """How a question is answered; with the question, all that the answer depends on."""

    max_new_tokens: int
    temperature: float
    seed: int
    dtype: str
    weights: str
    """fingerprint of the checkpoint"""


def answer_record(question: Question, settings: AnswerSettings, model: str) -> dict[str, Any]:
    """A line of the file without its answer. Raises UserError for a picture that cannot be read."""
    for path in question.pictures:
        load_picture(path)
    return {
        "id": question.name,
        "prompt": question.prompt,
        "image": shareable([str(path) for path in question.pictures]),
        "sha256": [picture_digest(path) for path in question.pictures],
        **asdict(settings),
        "model": shareable(model),
    }


def append_answer(output: Path, record: dict[str, Any], answer: Answer) -> None:
    append_line(output, {**record, "answer": answer.text, "truncated": answer.truncated})


def read_answered(output: Path, records: Sequence[dict[str, Any]]) -> set[str]:
    """Ids of `records` answered in the file, which is made, or made ready to append to: a last line that was cut short
    is taken off. Raises UserError for a file of something else, and for an answer given with other settings."""
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        output.touch()
        content = output.read_bytes()
    complete = len(content) if _is_whole(content) else content.rfind(b"\n") + 1
    expected = {record["id"]: record for record in records}
    answered = set()
    for line in parse_json_lines(content[:complete], output):
        found = {name: value for name, value in line.values.items() if name not in _OUTCOME}
        identity = found.get("id")
        if not isinstance(identity, str) or not isinstance(line.values.get("answer"), str):
            raise UserError(f"{line.where} is not an answer that this command wrote; name another --output.")
        if identity not in expected:
            continue
        if other := difference(expected[identity], found):
            raise UserError(f"{line.where}: id {identity!r} was answered with {other}; name another --output.")
        answered.add(identity)
    with writing(output):
        os.truncate(output, complete)
        if complete and not content[:complete].endswith(b"\n"):
            with output.open("ab") as file:
                file.write(b"\n")
    return answered


def _is_whole(content: bytes) -> bool:
    """Whether the last line is not one of ours that was cut short."""
    last = content[content.rfind(b"\n") + 1 :]
    try:
        json.loads(last)
    except ValueError:
        return not (last.startswith(_BEGINNING) or _BEGINNING.startswith(last)) or not last
    return True
