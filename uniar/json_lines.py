"""JSONL files: one object a line, every complaint with file and line."""

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uniar.errors import UserError

_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}
_SHOWN = 40


@dataclass(frozen=True)
class JsonLine:
    """One object of the file `path`, and the number of its line, from 1."""

    path: Path
    number: int
    values: dict[str, Any]

    @property
    def where(self) -> str:
        return f"{self.path}, line {self.number}"

    def get(self, name: str, kinds: type | tuple[type, ...], expected: str) -> Any:
        """The field `name`, or None where it is absent or null. Raises UserError for a value of another kind."""
        value = self.values.get(name)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise UserError(f"{self.where}: '{name}' is {describe(value)}, expected {expected}.")
        return value

    def refuse_slips(self, known: Sequence[str]) -> None:
        """Raises UserError for a field that is almost one of `known`; others belong to somebody else and pass."""
        for name in self.values:
            swapped = [other for other in known if sorted(name) == sorted(other)]
            near = swapped or difflib.get_close_matches(name, known, n=1, cutoff=0.85)
            if name not in known and near:
                raise UserError(f"{self.where}: unknown field '{name}'. Did you mean '{near[0]}'?")


def read_json_lines(path: Path) -> list[JsonLine]:
    """The objects of a JSONL file; blank lines are passed over.

    Raises UserError for a missing file, one that is no text, a broken line, and a line that is no object.
    """
    try:
        return parse_json_lines(path.read_bytes(), path)
    except FileNotFoundError:
        raise UserError(f"the file '{path}' does not exist.") from None
    except OSError as error:
        raise UserError(f"the file '{path}' cannot be read: {error.strerror}.") from error


def parse_json_lines(content: bytes, path: Path) -> list[JsonLine]:
    """The objects in `content`; `path` is what errors call it. Raises UserError as `read_json_lines` does."""
    try:
        lines = content.decode("utf-8-sig").split("\n")  # other line ends of Unicode may stand inside a text
    except UnicodeDecodeError as error:
        raise UserError(f"the file '{path}' is not text in UTF-8: {error}.") from error
    return [
        JsonLine(path, number, _object(text, f"{path}, line {number}"))
        for number, text in enumerate(lines, start=1)
        if text.strip()
    ]


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        values = json.loads(text.rstrip())
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON: {error.msg} at column {error.colno}.") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
        raise UserError(f"{where}: not valid JSON: {error}.") from error
    if not isinstance(values, dict):
        raise UserError(f"{where}: found {describe(values)}, expected an object.")
    if "\\u" in text and not is_unicode(json.dumps(values, ensure_ascii=False)):
        raise UserError(f"{where}: an escape \\uD800 to \\uDFFF stands alone, half of a character.")
    return values


def is_unicode(text: str) -> bool:
    """Whether the text can be written: one from a broken escape or broken bytes holds half characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def describe(value: Any) -> str:
    """A JSON value and its kind, cut to a readable length, for an error."""
    text = json.dumps(value, ensure_ascii=False)
    shown = text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
    return shown if value is None else f"{shown} ({_KINDS[type(value)]})"
