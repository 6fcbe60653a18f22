"""Prompt files in the forms that people have them in, all read into the same records.

- `.jsonl`: an object per line. `.json`: an array of objects or of strings, or lines as in `.jsonl`.
- `.txt`: a prompt per line. A folder of `.txt` files: a prompt per file, whose name is its id.
- `.csv`, `.tsv`: a row per record below a line of column names; an empty cell is a field left out.

Any of them may be compressed with gzip (`.jsonl.gz`). The fields of a record:

- `prompt`, or `instruction` as in UniAR's RL files, or `prompt_en` as in OneIG's; or the one that `prompt_key` names.
- `id`, or `idx` as in UniAR's evaluation files.
- `task`, or `task_type` as in T2I-R1's.
- `metadata`, or `meta` as in UniAR's evaluation files: an object for the rewards.
- `image`, or `input_image`, there or in the metadata; or the one that `image_key` names: a picture to edit.
- `number`, the count of lines in UniAR's files, is passed over; any other field is metadata.
"""

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from uniar.errors import UserError
from uniar.reading.files import reason_of
from uniar.reading.json_lines import (
    JsonLine,
    as_object,
    decoded,
    parse_json,
    parse_json_array,
    parse_json_lines,
    text_lines,
)
from uniar.reading.prompt_text import check_text

SUFFIXES = (".jsonl", ".json", ".txt", ".csv", ".tsv")
FIELDS = ("prompt", "instruction", "id", "task", "metadata", "image", "number")
MOST_UNPACKED = 2**30
"""bytes of a file that gzip packed: a small file can unpack to more than the memory holds"""
_LISTED = 5
Record = TypeVar("Record")
_PROMPT, _ID, _TASK, _METADATA, _IMAGE = (
    ("prompt", "instruction", "prompt_en"),
    ("id", "idx"),
    ("task", "task_type"),
    ("metadata", "meta"),
    ("image", "input_image"),
)


@runtime_checkable
class StoredPicture(Protocol):
    """A picture that is not a file of its own."""

    def content(self) -> bytes:
        """Of its file. Raises UserError if it cannot be read."""


@dataclass(frozen=True)
class Keys:
    """Names of the fields that hold the prompt and the picture to edit, where they are not the usual ones."""

    prompt: str | None = None
    image: str | None = None


@dataclass(frozen=True)
class PromptLine:
    """One record of a prompt file, checked but for its pictures."""

    line: JsonLine
    prompt: str
    id: str | int | None
    task: str | None
    metadata: dict[str, Any]
    images: tuple[Any, ...]
    """as they were given: paths, or pictures of a dataset"""


def read_prompt_file(path: Path) -> list[JsonLine]:
    """The rows of a prompt file, or of a folder of `.txt` files, with whatever fields they have. Raises UserError for
    one that is missing, of another kind, broken or empty."""
    packed = path.suffix == ".gz"
    kind = (path.with_suffix("") if packed else path).suffix.lower()
    if os.path.isdir(path):  # which a name that is too long is not
        rows = _folder(path)
    elif kind not in (*SUFFIXES, ""):
        raise UserError(
            f"the prompts '{path}' are not in a form that is read: a {', '.join(SUFFIXES)} file, any of them with .gz, "
            "or a folder of .txt files."
        )
    else:
        rows = list(_READERS.get(kind, parse_json_lines)(_content(path, packed), path))
    if not rows:
        raise UserError(f"the prompts '{path}' are empty; at least one prompt is needed.")
    return rows


def read_record(
    line: JsonLine, keys: Keys | None = None, also: Sequence[str] = (), default_prompt: str | None = None
) -> PromptLine:
    """The record in a row. `also` names further fields that have a meaning, of which slips are refused too. Without a
    `default_prompt` every row needs a prompt that `check_text` accepts. Raises UserError for a field of another kind, a
    slip, and a prompt that is missing or refused."""
    keys, values, where = keys or Keys(), line.values, line.where
    aliases = (keys.prompt, keys.image, *_PROMPT, *_ID, *_TASK, *_METADATA, *_IMAGE)
    line.refuse_slips([*FIELDS, *also], passing=aliases)
    used = {"number", *also}

    def take(name: str, kinds: type | tuple[type, ...], expected: str) -> Any:
        used.add(name)
        return line.get(name, kinds, expected)

    prompt = take(_prompt_key(line, keys.prompt, default_prompt is None), str, "a string")
    if default_prompt is None:
        check_text(prompt, f"{where}: the prompt")
    own_id = take("id", (str, int), "a string or a whole number")
    if own_id is None and type(values.get("idx")) in (str, int):
        own_id = take("idx", (str, int), "")
    task = take("task", str, "a string")
    if task is None and isinstance(values.get("task_type"), str):
        task = take("task_type", str, "")
    metadata = take("metadata", dict, "an object")
    if metadata is None and isinstance(values.get("meta"), dict):  # UniAR's repeat the prompt there
        metadata = {
            key: value for key, value in take("meta", dict, "").items() if key not in _PROMPT or value != prompt
        }
    images = _images(line, keys.image, metadata or {}, take)
    extra = {name: value for name, value in values.items() if name not in used}
    for name in extra.keys() & (metadata or {}).keys():
        raise UserError(f"{where}: '{name}' is given both as a field and in metadata.")
    text = default_prompt if prompt is None and default_prompt is not None else prompt
    return PromptLine(line, text, own_id, task, {**(metadata or {}), **extra}, images)


def read_all(lines: Iterable[JsonLine], read: Callable[[JsonLine], Record]) -> list[Record]:
    """What `read` makes of each row. Raises its first UserError, with the places of all others."""
    records, faults = [], []
    for line in lines:
        try:
            records.append(read(line))
        except UserError as error:
            faults.append((line, error))
    if not faults:
        return records
    first = str(faults[0][1])
    if others := [str(line.number) for line, _ in faults[1:]]:
        listed = ", ".join(others[:_LISTED]) + (", …" if len(others) > _LISTED else "")
        first = f"{first.rstrip('.')}; {len(others)} more {'is' if len(others) == 1 else 'are'} wrong: {listed}."
    raise UserError(first) from faults[0][1]


def _prompt_key(line: JsonLine, given: str | None, needed: bool) -> str:
    if given is None and "prompt" in line.values and "instruction" in line.values:
        raise UserError(f"{line.where}: 'prompt' and 'instruction' are two names of one field; give one of them.")
    found = [name for name in ([given] if given else _PROMPT) if line.values.get(name) is not None]
    if found or not needed:
        return found[0] if found else "prompt"
    others = [f"'{name}'" for name in line.values if name not in _PROMPT]
    wanted = f"'{given}'" if given else "'prompt' (or 'instruction')"
    there = f"; there are {', '.join(others[:_LISTED])}, one of which prompt_key can name" if others else ""
    raise UserError(f"{line.where}: the field {wanted} is missing{there}.")


def _images(line: JsonLine, given: str | None, metadata: dict[str, Any], take: Callable[..., Any]) -> tuple[Any, ...]:
    """The pictures to edit, as they were given."""
    name, image = given or "image", None
    if given is None or given in line.values:
        image = take(name, (str, list, StoredPicture), "the path of a picture")
    if image is None and given is None:
        name = "input_image"
        image = take(name, str, "") if isinstance(line.values.get(name), str) else metadata.get(name)
        image = image if isinstance(image, str) else None
    elif image is None and given is not None and (image := metadata.get(given)) is None:
        raise UserError(f"{line.where}: the field '{given}' (image_key) is missing.")
    images = tuple(image) if isinstance(image, list) else () if image is None else (image,)
    for each in images:
        if each == "":
            raise UserError(f"{line.where}: '{name}' is empty.")
        if isinstance(image, list) and not isinstance(each, str):
            raise UserError(f"{line.where}: '{name}' lists something that is not a path.")
    return images


# Forms ---------------------------------------------------------------------------------------------------------------


def _content(path: Path, packed: bool = False) -> bytes:
    try:
        if not packed:
            return path.read_bytes()
        with gzip.open(path) as file:
            content = file.read(MOST_UNPACKED + 1)
    except FileNotFoundError:
        raise UserError(f"the prompt file '{path}' does not exist.") from None
    except (OSError, ValueError, EOFError, zlib.error) as error:  # a NUL in the path; a file that gzip did not write
        reason = getattr(error, "strerror", None) or reason_of(error)
        raise UserError(f"the prompt file '{path}' cannot be read: {reason}.") from error
    if len(content) > MOST_UNPACKED:
        raise UserError(f"the prompt file '{path}' holds more than {MOST_UNPACKED} bytes when unpacked; unpack it.")
    return content


def _folder(path: Path) -> list[JsonLine]:
    files = sorted(  # without what macOS puts beside each file: ._a.txt
        file for file in path.glob("*") if file.suffix.lower() == ".txt" and not file.name.startswith(".")
    )
    if not files:
        raise UserError(f"the folder '{path}' has no .txt files, each a prompt.")
    texts = [decoded(_content(file), file).strip() for file in files]
    return [
        JsonLine(file, number, {"prompt": text, "id": file.stem}, str(file))
        for number, (file, text) in enumerate(zip(files, texts, strict=True), start=1)
    ]


def _text(content: bytes, path: Path) -> Iterator[JsonLine]:
    for number, text in text_lines(content, path):
        if number == 1 and text.startswith(('{"', '[{"')):
            raise UserError(f"{path}, line 1: this is JSON, not a prompt per line; call the file .jsonl or .json.")
        yield JsonLine(path, number, {"prompt": text})


def _json(content: bytes, path: Path) -> Iterator[JsonLine]:
    if not content.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        yield from _one_object(content, path) or parse_json_lines(content, path)
        return
    for where, number, value in parse_json_array(content, path):
        yield JsonLine(path, number, {"prompt": value} if isinstance(value, str) else as_object(value, where), where)


def _one_object(content: bytes, path: Path) -> list[JsonLine]:
    """The one record of a file that is one object on several lines; none where it is anything else."""
    text = decoded(content, path)
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return []
    line = text[: len(text) - len(text.lstrip())].count("\n") + 1
    where = f"{path}, line {line}"
    return [JsonLine(path, line, as_object(parse_json(text, where), where))]


def _table(content: bytes, path: Path, delimiter: str = ",") -> list[JsonLine]:
    cells = csv.reader(io.StringIO(decoded(content, path), newline=""), delimiter=delimiter, strict=True)
    rows: list[JsonLine] = []
    names: list[str] | None = None
    line = 1
    try:
        for row in cells:
            where, begun, line = f"{path}, line {line}", line, cells.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            if names is None:
                names = [cell.strip() for cell in row]
                if twice := [name for name in names if name and names.count(name) > 1]:
                    raise UserError(f"{where}: the column '{twice[0]}' is named twice.")
                continue
            if len(row) != len(names):
                raise UserError(f"{where}: there are {len(row)} cells; the first line names {len(names)} columns.")
            values: dict[str, Any] = {
                name: cell for name, cell in zip(names, row, strict=True) if name and cell.strip()
            }
            if "metadata" in values:
                values["metadata"] = parse_json(values["metadata"], f"{where}: metadata")
            rows.append(JsonLine(path, begun, values))
    except csv.Error as error:
        raise UserError(f"{path}, line {cells.line_num}: not a valid table: {reason_of(error)}.") from error
    for name in _ID:
        ids = [record.values[name] for record in rows if name in record.values]
        if len(set(ids)) == len(ids):
            continue
        for record in rows:  # numbered within a category, say
            metadata = {} if record.values.get("metadata") is None else record.values["metadata"]
            if name not in record.values or not isinstance(metadata, dict):  # which read_record refuses
                continue
            if name in metadata:
                raise UserError(f"{record.where}: '{name}' is given both as a column and in metadata.")
            record.values["metadata"] = {name: record.values.pop(name), **metadata}
    return rows


_READERS: dict[str, Callable[[bytes, Path], Iterable[JsonLine]]] = {
    ".json": _json,
    ".txt": _text,
    ".csv": _table,
    ".tsv": partial(_table, delimiter="\t"),
}
