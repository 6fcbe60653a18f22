"""Files of rows in the forms that people have them in, each read into the same rows (uniar/reading/prompt_files.py)."""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from uniar.errors import UserError
from uniar.reading.files import decoded, read_regular, reason_of, user_path
from uniar.reading.json_lines import (
    JsonLine,
    as_object,
    parse_json,
    parse_json_array,
    parse_json_lines,
    text_lines,
)
from uniar.reading.prompt_files import IDS

JSON_LINES = (".jsonl", ".ndjson", ".jsonlines")
SUFFIXES = (*JSON_LINES, ".json", ".txt", ".csv", ".tsv", ".parquet")
MOST_UNPACKED = 2**30
"""bytes of a file that gzip packed: a small file can unpack to more than the memory holds"""
_MISTAKEN = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`",
    b"PK\x03\x04": "a zip archive or an Excel workbook; unpack it, or save it as CSV",
    b"PAR1": "Parquet; end its name in .parquet",
    b"\x1f\x8b": "packed by gzip; end its name in .gz",
}
"""How files begin that are not what their names say -> what they are"""
_SEPARATORS = (",", ";", "\t", "|")
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*?(?:\n|\r|\Z)', re.IGNORECASE)
_LOOKS_LIKE_JSON = re.compile(r'\{\s*(?:"|\Z)|\[\s*(?:["{[]|\Z)')
_OTHER_SPLITS = re.compile(r"(?i)(?:^|[^a-z])(?:test|testing|val|valid|validation|dev|eval|evaluation)(?:[^a-z]|$)")


def read_prompt_file(path: Path) -> list[JsonLine]:
    """The rows of a prompt file, or of a folder of them, with whatever fields they have. Raises UserError for one that
    is missing, of another kind, broken or empty."""
    path = user_path(path)
    rows = _folder(path) if path.is_dir() else _rows(path)
    if not rows:
        raise UserError(f"the prompts '{path}' are empty; at least one prompt is needed.")
    return rows


def has_rows(folder: Path) -> bool:
    """Whether a folder holds prompt files and nothing else, `read_prompt_file`'s kind; others are for `datasets`."""
    files = _visible(folder)
    return any(_kind(file) == ".txt" for file in files) or (
        bool(files) and all(_kind(file) in SUFFIXES[:-1] and not file.is_dir() for file in files)
    )


def _kind(path: Path) -> str:
    """The suffix that says how a file is read."""
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def _visible(folder: Path) -> list[Path]:
    """Of a folder, without what describes the rest, and what macOS puts beside each file: ._a.txt"""
    return sorted(file for file in folder.iterdir() if not file.name.startswith(".") and _kind(file) != ".md")


def _rows(path: Path) -> list[JsonLine]:
    if (kind := _kind(path)) not in (*SUFFIXES, ""):
        raise UserError(
            f"the prompts '{path}' are not in a form that is read: a {', '.join(SUFFIXES)} file, any of them with .gz, "
            "or a folder of them."
        )
    return list(_READERS.get(kind, parse_json_lines)(_content(path), path))


def _content(path: Path) -> bytes:
    content = _unpacked(path) if path.suffix.lower() == ".gz" else read_regular(path, "prompt file")
    for beginning, what in _MISTAKEN.items():
        if content.startswith(beginning) and not (beginning == b"PAR1" and _kind(path) == ".parquet"):
            raise UserError(f"the prompt file '{path}' is {what}.")
    return content


def _unpacked(path: Path) -> bytes:
    content = read_regular(path, "prompt file")
    try:
        with gzip.open(io.BytesIO(content)) as file:
            content = file.read(MOST_UNPACKED + 1)
    except (OSError, EOFError, zlib.error) as error:  # a file that gzip did not write
        raise UserError(f"the prompt file '{path}' cannot be read: {reason_of(error)}.") from error
    if len(content) > MOST_UNPACKED:
        raise UserError(f"the prompt file '{path}' holds more than {MOST_UNPACKED} bytes when unpacked; unpack it.")
    return content


def _folder(path: Path) -> list[JsonLine]:
    files = _visible(path)
    if texts := [file for file in files if _kind(file) == ".txt"]:
        if others := [file.name for file in files if _kind(file) in SUFFIXES and file not in texts]:
            raise UserError(
                f"the folder '{path}' has .txt files, each a prompt, and other prompt files such as {others[0]}; name "
                "one of these, or a folder of one kind."
            )
        return [_text_file(file, number) for number, file in enumerate(texts, start=1)]
    if not has_rows(path):
        raise UserError(f"the folder '{path}' has no .txt files, each a prompt, nor other files of prompts alone.")
    if len(files) > 1 and (splits := [file.name for file in files if _OTHER_SPLITS.search(file.name)]):
        raise UserError(
            f"the folder '{path}' has files of several splits, such as {splits[0]}; name the file, or "
            f"datasets:{path}:SPLIT."
        )
    return [
        JsonLine(row.path, number, row.values, row.where)
        for number, row in enumerate((row for file in files for row in _rows(file)), start=1)
    ]


def _text_file(file: Path, number: int) -> JsonLine:
    text = decoded(_content(file), file).strip()
    _refuse_json(text, str(file))
    return JsonLine(file, number, {"prompt": text, "id": file.name[: file.name.lower().rindex(".txt")]}, str(file))


def _text(content: bytes, path: Path) -> Iterator[JsonLine]:
    for number, text in text_lines(content, path):
        _refuse_json(text, f"{path}, line {number}")
        yield JsonLine(path, number, {"prompt": text})


def _refuse_json(text: str, where: str) -> None:
    if _LOOKS_LIKE_JSON.match(text):
        raise UserError(f"{where}: this is JSON, not a prompt; call the file .jsonl or .json.")


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


def _table(content: bytes, path: Path) -> list[JsonLine]:
    text = decoded(content, path)
    separator = _separator(text, path)
    cells = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[JsonLine] = []
    names: list[str] | None = None
    line = 1
    try:
        for row in cells:
            where, begun, line = f"{path}, line {line}", line, cells.line_num + 1
            if not any(cell.strip() for cell in row) or (begun == 1 and _SEPARATOR_LINE.match(text)):
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
    for name in IDS:
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


def _separator(text: str, path: Path) -> str:
    """What parts the columns: what a first line `sep=;` says, else what parts the names, of several the one that parts
    every row into as many cells. Raises UserError where that leaves several or none."""
    if told := _SEPARATOR_LINE.match(text):
        return told[1]
    widths = {separator: _widths(text, separator) for separator in _SEPARATORS}
    parting = [separator for separator in _SEPARATORS if widths[separator][:1] > [1]]
    if len(parting) < 2 or (path.suffix == ".tsv" and "\t" in parting):
        return "\t" if "\t" in parting else (*parting, ",")[0]
    even = [separator for separator in parting if len(set(widths[separator])) == 1]
    if len(even) != 1:
        shown = " and ".join(repr(separator) for separator in parting)
        raise UserError(f"{path}: {shown} could each part the columns; say which in a first line such as sep=,")
    return even[0]


def _widths(text: str, separator: str) -> list[int]:
    """Of the rows that are not blank, the number of cells."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    with suppress(csv.Error):  # a cell without an end
        return [len(row) for row in rows if any(cell.strip() for cell in row)]
    return []


def _parquet(content: bytes, path: Path) -> Iterator[JsonLine]:
    import pyarrow as pa  # late: it takes a while, and most runs read text
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(pa.BufferReader(content)).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"the prompt file '{path}' is not Parquet that can be read: {reason_of(error)}.") from error
    for number, row in enumerate(rows):
        where = f"{path}, row {number}"
        values = {name: value for name, value in row.items() if value is not None}
        for name, value in values.items():
            if isinstance(value.get("bytes") if isinstance(value, dict) else value, bytes):
                raise UserError(f"{where}: '{name}' holds bytes, as of a picture; name the folder as datasets:FOLDER.")
        if isinstance(values.get("metadata"), str):  # columns have one type, so mixed metadata is stored as JSON
            values["metadata"] = parse_json(values["metadata"], f"{where}: metadata")
        yield JsonLine(path, number, values, where)


_READERS: dict[str, Callable[[bytes, Path], Iterable[JsonLine]]] = {
    ".json": _json,
    ".txt": _text,
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
}
