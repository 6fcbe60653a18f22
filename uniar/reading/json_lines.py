"""Rows of JSON: JSONL files, one object per line, and arrays; every complaint with file and line."""

import difflib
import json
import math
import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uniar.errors import UserError, shortened
from uniar.reading.files import decoded, read_regular, reason_of

_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
_SHOWN = 40
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class JsonLine:
    """One row of the file `path`, and the number of its line, from 1."""

    path: Path
    number: int
    values: dict[str, Any]
    place: str = ""
    """what errors call it where that is not file and line"""

    @property
    def where(self) -> str:
        return self.place or f"{self.path}, line {self.number}"

    def get(self, name: str, kinds: type | tuple[type, ...], expected: str) -> Any:
        """The field `name`, or None where it is absent or null. Raises UserError for a value of another kind."""
        value = self.values.get(name)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise UserError(f"{self.where}: '{name}' is {describe(value)}, expected {expected}.")
        return value

    def refuse_slips(self, known: Sequence[str], passing: Container[str | None] = ()) -> None:
        """Raises UserError for a field that is almost one of `known`, unless it is one of `passing`; others belong to
        somebody else and pass."""
        for name in self.values:
            if name in known or name in passing:
                continue
            swapped = [other for other in known if sorted(name) == sorted(other)]
            if near := swapped or difflib.get_close_matches(name, known, n=1, cutoff=0.85):
                raise UserError(f"{self.where}: unknown field '{name}'. Did you mean '{near[0]}'?")


def read_json_lines(path: Path) -> list[JsonLine]:
    """The objects of a JSONL file; blank lines are passed over.

    Raises UserError for a missing file, one that is not text, a broken line, and a line that is not an object.
    """
    return parse_json_lines(read_regular(path), path)


def parse_json_lines(content: bytes, path: Path) -> list[JsonLine]:
    """The objects in `content`; `path` is what errors call it. Raises UserError as `read_json_lines` does."""
    return [
        JsonLine(path, number, as_object(parse_json(text, where := f"{path}, line {number}"), where))
        for number, text in text_lines(content, path)
    ]


def parse_json_array(content: bytes, path: Path) -> Iterator[tuple[str, int, Any]]:
    """The entries of one JSON array, each with where it is, in words, and a number that no other entry has: that of the
    line it begins in, or its place from 1 where lines hold several. Raises UserError for content that is not one."""
    text = decoded(content, path).rstrip()
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON: {error.msg} at column {error.colno}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {reason_of(error)}.") from error
    spans: list[tuple[int, int]] = []
    lines: list[int] = []
    place, line = text.index("["), 1
    while text[place] != "]" and text[(start := _behind_space(text, place + 1))] != "]":  # behind "[" or ","
        line += text.count("\n", spans[-1][0] if spans else 0, start)
        _, end = _DECODER.raw_decode(text, start)
        spans.append((start, end))
        lines.append(line)
        place = _behind_space(text, end)
    by_line = len(set(lines)) == len(lines)
    word, numbers = ("line", lines) if by_line else ("entry", list(range(1, len(lines) + 1)))
    for number, (start, end) in zip(numbers, spans, strict=True):
        where = f"{path}, {word} {number}"
        yield where, number, parse_json(text[start:end], where)


def _behind_space(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    return place if found is None else found.end()


def text_lines(content: bytes, path: Path) -> list[tuple[int, str]]:
    """The lines that are not blank, without white space at their ends, and their numbers, from 1. Raises UserError."""
    # Other line ends of Unicode may stand inside a string.
    lines = enumerate(decoded(content, path).replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1)
    return [(number, text.strip()) for number, text in lines if text.strip()]


def parse_json(text: str, where: str) -> Any:
    """Raises UserError for text that is not JSON (NaN and the infinities are not), a key twice in an object, a number
    too large for a float, and half of a character."""
    try:
        value = json.loads(text, object_pairs_hook=_no_key_twice, parse_float=_finite, parse_constant=_finite)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON: {error.msg} at column {error.colno}.") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
        raise UserError(f"{where}: not valid JSON: {reason_of(error)}.") from error
    if "\\u" in text and not is_unicode(json.dumps(value, ensure_ascii=False)):
        raise UserError(f"{where}: an escape \\uD800 to \\uDFFF stands alone, half of a character.")
    return value


def as_object(value: Any, where: str) -> dict[str, Any]:
    """Raises UserError for any other value."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: found {describe(value)}, expected an object.")
    return value


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return values


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number} is not a number that is read")
    return value


def is_unicode(text: str) -> bool:
    """Whether the text can be written: one from a broken escape or broken bytes holds half characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def describe(value: Any) -> str:
    """A JSON value and its kind, cut to a readable length, for an error."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    shown = shortened(text, _SHOWN)
    return shown if value is None else f"{shown} ({_KINDS.get(type(value), type(value).__name__)})"
