"""Prompts of a benchmark in the forms they are published in, read as UniAR's own lines are:

    {"idx": 0, "prompt": "…", "meta": {…}}

A line of another form becomes such a line: `idx` is its place, `meta` all that it says. So a prompt has the same noise
whichever of its files it comes from.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rewards.judge.edit_criteria import EDIT_CRITERIA, KEY, kind_named
from rl.benchmarks.catalog import BENCHMARKS
from rl.data.dataset_rows import DATASETS, is_dataset
from rl.data.prompts import PromptRecord, prompts_of, read_lines
from uniar.errors import UserError
from uniar.reading.files import HUB_ID, read_json, user_path
from uniar.reading.json_lines import JsonLine, as_object

PROMPTS = ("prompt", "instruction", "prompt_en", "text")
"""fields that files call their prompt, the first that is a string"""
ONEIG_TEXT = ("Text_Rendering", "text_rendering", "text")


def read_benchmark(
    name: str, source: str, image_root: Path | None = None, limit: int | None = None
) -> list[PromptRecord]:
    """The prompts of the benchmark `name`, its metadata on one level, kinds of edits by the names they are judged by.

    source: a prompt file, a folder of `.txt` files, `datasets:NAME[:SPLIT]`, or a data set's id on the hub. image_root:
    the folder that paths of pictures start from; None: that of the file. limit: only the first ones.
    Raises UserError naming file and line, also for prompts of another benchmark's kind.
    """
    source = _named(source)
    lines = _lines(name, source)[:limit]
    if not BENCHMARKS[name].own_prompts:
        lines = [_uniar_line(line, place) for place, line in enumerate(lines)]
    records = [
        replace(record, metadata=_with_kind(_flat(record.metadata)), size=None)
        for record in prompts_of(lines, source, image_root)
    ]
    edits = BENCHMARKS[name].edits
    for record in records:
        if (record.image is not None) != edits:
            said = "it has no picture to edit" if edits else "it has a picture to edit"
            raise UserError(f"{record.where}: {said}, and {name} {'edits' if edits else 'draws'}.")
    return records


def _named(source: str) -> str:
    """The source, `datasets:` before a bare id of the hub."""
    if is_dataset(source) or user_path(source).exists() or not HUB_ID.fullmatch(source):
        return source if is_dataset(source) else str(user_path(source))
    return source if Path(source).suffix or Path(source.split("/")[0]).exists() else DATASETS + source


def _lines(name: str, source: str) -> list[JsonLine]:
    if name == "imgedit" and (lines := _by_name(Path(source))):
        return lines
    lines = read_lines(source)
    if name == "oneig":
        kept = [line for line in lines if _said(line, "category") in (None, *ONEIG_TEXT)]
        if not kept:
            raise UserError(f"the prompts '{source}' have none of the category {ONEIG_TEXT[0]}.")
        return kept
    return list(_with_questions(lines)) if name == "dpg" else lines


def _by_name(path: Path) -> list[JsonLine]:
    """The edits of basic_edit.json: one object, which names each; `id` is the picture's path. None of another file."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return []
    content = read_json(path, "prompt file")
    if not isinstance(content, dict) or "prompt" in content:
        return []
    lines = []
    for number, (key, value) in enumerate(content.items(), start=1):
        where = f"{path}, '{key}'"
        said = as_object(value, where)
        lines.append(JsonLine(path, number, {**said, "original_id": key, "input_image": said.get("id")}, where))
    return lines


def _with_questions(lines: Iterable[JsonLine]) -> Iterable[JsonLine]:
    """Rows of dpg_bench.csv, a question each, as one line of each `item_id` with its `questions`, as `judge_questions`
    reads them; all rows that have none as they are."""
    found: dict[Any, JsonLine] = {}
    for place, line in enumerate(lines):
        item, number = line.values.get("item_id"), line.values.get("proposition_id")
        first = found.setdefault(("row", place) if item is None else item, line)
        if item is None:
            continue
        if first is line:
            found[item] = first = replace(line, values={"id": item, "text": line.values.get("text")})
        if isinstance(text := line.values.get("question_natural_language"), str):
            after = [one for one in re.findall(r"\d+", str(line.values.get("dependency", ""))) if one != "0"]
            first.values.setdefault("questions", []).append({"id": str(number), "question": text, "after": after})
    return found.values()


def _uniar_line(line: JsonLine, place: int) -> JsonLine:
    values = line.values
    if isinstance(values.get("meta"), dict):
        return line if "idx" in values else replace(line, values={"idx": place, **values})
    said = {**_nested(values, "metadata"), **{key: value for key, value in values.items() if key != "metadata"}}
    key = next((key for key in PROMPTS if isinstance(values.get(key), str)), None)
    if key is None:
        return line  # which reading refuses, with what is missing
    prompt = values[key]
    if key == "text":  # elsewhere that is what to write
        del said[key]
    picture = {key: said.pop(key) for key in ("image", "input_image") if key in said}
    return replace(line, values={"idx": place, "prompt": prompt, "meta": said, **picture})


def _flat(metadata: dict[str, Any]) -> dict[str, Any]:
    """Without a second level, as ImgEdit's lines have one."""
    return {**{key: value for key, value in metadata.items() if key != "metadata"}, **_nested(metadata, "metadata")}


def _with_kind(metadata: dict[str, Any]) -> dict[str, Any]:
    """With the one name of its kind of edit, so that each kind has one line of the table; an unknown one as it is."""
    kind = kind_named(metadata.get(KEY))
    return {**metadata, KEY: kind} if kind in EDIT_CRITERIA else metadata


def _said(line: JsonLine, key: str) -> Any:
    return _nested(line.values, "meta").get(key, _nested(line.values, "metadata").get(key, line.values.get(key)))


def _nested(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key)
    return dict(found) if isinstance(found, dict) else {}
