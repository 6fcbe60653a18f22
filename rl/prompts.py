"""Prompts to train and evaluate on: JSONL files, YAML mixes of them, and `datasets` datasets, all as PromptRecords.

A JSONL line is an object with `prompt` (or `instruction`, as UniAR's own RL files call it), and optionally `task`,
`metadata` (an object for the rewards), `image` (a picture to edit: a path) and `id`. `number`, the line count of
UniAR's files, is passed over; any other field is taken as metadata. A YAML mix lists such files:

    datasets:
      - name: counting
        json_path: data/counting.jsonl
        sampled_ratio: 0.5        # below 1 a fixed random part of the file, above 1 some of it more than once

Ids do not depend on the order of files or lines, nor on the process that loads them: they are hashes of the content, or
the file's own, and seed the noise of rollouts.
"""

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from rl.dataset_rows import DatasetImage, read_dataset
from rl.settings import build, origin_of, setting
from rl.yaml_files import read_yaml
from uniar.errors import UserError, did_you_mean
from uniar.pictures import check_picture, load_picture, picture_to_edit

FIELDS = ("prompt", "instruction", "task", "metadata", "image", "id", "number")


@dataclass(frozen=True)
class PromptRecord:
    """One prompt.

    Attributes:
        prompt: the text to draw, or the edit to make.
        task: what kind of prompt it is; rewards can be limited to tasks. None where the file names none.
        metadata: whatever rewards need to know of it (a target text, object counts, …).
        image: the picture to edit, not read yet; None to draw from scratch.
        id: unique within what was loaded together, and stable (see the module's head).
    """

    prompt: str
    task: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    image: str | DatasetImage | None = None
    id: str = ""

    def load_image(self) -> Image.Image | None:
        """The picture to edit in RGB, or None. Raises UserError if it cannot be read."""
        return None if self.image is None else load_picture(*self._picture())

    def image_to_edit(self, height: int, width: int) -> Image.Image:
        """The picture to edit in the size of the image to draw, in pixels. Raises UserError if it cannot be read."""
        return picture_to_edit(self._picture()[0], height, width, self._picture()[1])

    def _picture(self) -> tuple[str | bytes, str]:
        content = self.image.content() if isinstance(self.image, DatasetImage) else self.image
        return content, f"the image '{self.image}' of prompt {self.id}"


@dataclass(frozen=True)
class MixEntry:
    """One file of a YAML mix."""

    json_path: str = setting(
        "JSONL file; a relative path starts from the current folder, or else the mix's folder or one above it."
    )
    name: str | None = setting("What to call it; null: the file's name.", None)
    sampled_ratio: float = setting(
        "How much of it to take: below 1 a fixed random part, above 1 some or all of it more than once.", 1.0, gt=0
    )


@dataclass(frozen=True)
class _Row:
    """A record before it has its final id: `key` is the content's hash, or the file's own id."""

    key: str
    record: PromptRecord


def load_prompts(source: str | Path, image_root: str | Path | None = None, seed: int = 0) -> list[PromptRecord]:
    """All prompts of `source`: a JSONL file, a YAML mix, or `datasets:NAME[:SPLIT]` (a dataset of the Hugging Face
    hub, or a folder that `save_to_disk` wrote).

    image_root: folder that relative image paths start from; None: the folder of the JSONL file.
    seed: which part of a file a sampled_ratio below 1 takes.
    Raises UserError naming file and line: missing file, broken JSON, missing or mistyped field, a missing image, no
    prompts at all, an id given twice.
    """
    name = str(source)
    if name.startswith("datasets:"):
        rows = list(_dataset_rows(name.removeprefix("datasets:"), image_root))
    elif Path(name).is_dir():
        rows = list(_dataset_rows(name, image_root))
    elif Path(name).suffix in (".yaml", ".yml"):
        rows = _mix_rows(Path(name), image_root, seed)
    elif Path(name).suffix in (".jsonl", ".json"):
        rows = _jsonl_rows(Path(name), image_root)
    else:
        raise UserError(f"the prompts '{name}' are neither a .jsonl file, a .yaml mix nor datasets:NAME[:SPLIT].")
    if not rows:
        raise UserError(f"the prompts '{name}' are empty; at least one prompt is needed.")
    counts: Counter[str] = Counter()
    records = []
    for row in rows:  # equal content comes in any order, so numbering it does not tie ids to the order
        number, counts[row.key] = counts[row.key], counts[row.key] + 1
        records.append(replace(row.record, id=f"{row.key}#{number}" if number else row.key))
    if len({record.id for record in records}) < len(records):
        raise UserError(f"the prompts '{name}' have an id that ends like the number of a copy ('#1'); rename it.")
    return records


# Files ---------------------------------------------------------------------------------------------------------------


def _jsonl_rows(path: Path, image_root: str | Path | None, id_prefix: str = "") -> list[_Row]:
    root = path.parent if image_root is None else Path(image_root)
    rows, lines_of_ids = [], {}
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    values = json.loads(line.rstrip())
                except json.JSONDecodeError as error:
                    raise UserError(f"{where}: not valid JSON: {error.msg} at column {error.colno}.") from error
                row = _row(values, where, root, id_prefix)
                if isinstance(values.get("id"), str | int):
                    if row.key in lines_of_ids:
                        raise UserError(f"{where}: the id {values['id']!r} was given in line {lines_of_ids[row.key]}.")
                    lines_of_ids[row.key] = number
                rows.append(row)
    except FileNotFoundError:
        raise UserError(f"the prompt file '{path}' does not exist.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"the prompt file '{path}' is not text in UTF-8: {error}.") from error
    return rows


def _mix_rows(path: Path, image_root: str | Path | None, seed: int) -> list[_Row]:
    content, origins = read_yaml(path, "prompt mix")
    if not isinstance(content, dict) or not isinstance(content.get("datasets"), list):
        raise UserError(f"{path}: a prompt mix needs the key 'datasets' with a list of files.")
    for key in content:
        if key != "datasets":
            raise UserError(f"{origin_of((key,), origins)}: unknown key '{key}'.{did_you_mean(key, ['datasets'])}")
    rows, names = [], {}
    for i, item in enumerate(content["datasets"]):
        place = ("datasets", str(i))
        entry = build(MixEntry, item, place, origins)
        where = origin_of(place, origins)
        file = _find_beside(entry.json_path, path)
        if file is None:
            raise UserError(f"{where}: the file '{entry.json_path}' of the mix does not exist.")
        name = entry.name or file.stem
        if name in names:
            raise UserError(f"{where}: the name '{name}' was given to the file of {names[name]}; names must differ.")
        names[name] = where
        found = _jsonl_rows(file, image_root, f"{name}/")
        if not found:
            raise UserError(f"{where}: the file '{file}' of the mix has no prompts.")
        rows += _take(found, entry.sampled_ratio, seed)
    return rows


def _find_beside(name: str, mix: Path) -> Path | None:
    """A file that a mix names: from the current folder, else from the mix's folder or one above it, else, since mixes
    travel with their files, by the last parts of its path in the mix's folder."""
    here = mix.resolve().parent
    tails = [Path(*Path(name).parts[i:]) for i in range(1, len(Path(name).parts))]
    candidates = [Path(name), *(folder / name for folder in (here, *here.parents)), *(here / tail for tail in tails)]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _take(rows: list[_Row], ratio: float, seed: int) -> list[_Row]:
    """Whole copies of the rows for the whole part of `ratio`, and a part of them for the rest: those with the smallest
    hashes, so that the choice depends on the seed and the content alone."""
    copies, part = int(ratio), ratio - int(ratio)
    counts: Counter[str] = Counter()
    ranked = []
    for index, row in enumerate(rows):
        counts[row.key] += 1
        ranked.append((_hash(seed, row.key, counts[row.key]), index))
    chosen = {index for _, index in sorted(ranked)[: round(part * len(rows))]}
    taken = rows * copies + [row for index, row in enumerate(rows) if index in chosen]
    return taken or [rows[sorted(ranked)[0][1]]]  # a tiny ratio of a small file still takes one


def _dataset_rows(name: str, image_root: str | Path | None) -> Iterator[_Row]:
    root = Path() if image_root is None else Path(image_root)
    seen: dict[str, str] = {}
    for number, values in enumerate(read_dataset(name)):
        where = f"dataset '{name}', row {number}"
        if isinstance(values.get("metadata"), str):  # columns have one type, so mixed metadata is stored as JSON
            try:
                values["metadata"] = json.loads(values["metadata"])
            except json.JSONDecodeError as error:
                raise UserError(f"{where}: metadata is not valid JSON: {error.msg}.") from error
        row = _row({key: value for key, value in values.items() if value is not None}, where, root, "")
        if values.get("id") is not None and seen.setdefault(row.key, where) != where:
            raise UserError(f"{where}: the id {values['id']!r} was given in {seen[row.key]}.")
        yield row


# Fields --------------------------------------------------------------------------------------------------------------


def _row(values: Any, where: str, root: Path, id_prefix: str) -> _Row:
    """One line or dataset row, checked. Raises UserError."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: found {_kind(values)}, expected an object with the field 'prompt'.")
    if "prompt" in values and "instruction" in values:
        raise UserError(f"{where}: 'prompt' and 'instruction' are two names of one field; give one of them.")
    prompt = _typed(values, "instruction" if "instruction" in values else "prompt", str, "a text", where)
    if prompt is None:
        near = difflib.get_close_matches("prompt", [key for key in values if key not in FIELDS], n=1)
        found = f"; found {near[0]!r}" if near else ""
        raise UserError(f"{where}: the field 'prompt' (or 'instruction') is missing{found}.")
    if not prompt.strip():
        raise UserError(f"{where}: the prompt is empty.")
    task = _typed(values, "task", str, "a text", where)
    metadata = _typed(values, "metadata", dict, "an object", where) or {}
    for key, value in values.items():
        if key in FIELDS:
            continue
        if key in metadata:
            raise UserError(f"{where}: '{key}' is given both as a field and in metadata.")
        if near := _slip(key):
            raise UserError(f"{where}: unknown field '{key}'.{near}")
        metadata = metadata | {key: value}
    image = _typed(values, "image", (str, DatasetImage), "the path of a picture", where)
    own_id = _typed(values, "id", (str, int), "a text or a whole number", where)
    key = _hash(prompt, task, metadata, image) if own_id is None else f"{id_prefix}{own_id}"
    if isinstance(image, str):
        image = str(root / image)
    if image is not None:
        check_picture(image if isinstance(image, str) else image.content(), f"{where}: the image '{image}'")
    return _Row(key, PromptRecord(prompt, task, metadata, image))


def _typed(values: dict, key: str, kinds: type | tuple[type, ...], words: str, where: str) -> Any:
    value = values.get(key)
    if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
        raise UserError(f"{where}: '{key}' is {_kind(value)}, expected {words}.")
    return value


def _slip(key: str) -> str:
    """A hint if a field that is not one of ours is almost one."""
    near = difflib.get_close_matches(key, FIELDS, n=1, cutoff=0.85)
    return f" Did you mean '{near[0]}'?" if near else ""


def _kind(value: Any) -> str:
    kinds = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    text = json.dumps(value, ensure_ascii=False, default=str)
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({kinds.get(type(value), 'null')})"


def _hash(*parts: Any) -> str:
    """16 hex digits of SHA-256 over the parts as JSON, object keys in order."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=_plain)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _plain(value: Any) -> str:
    """What JSON has no form for: a picture of a dataset by its content, anything else (a date, say) as text."""
    return value.content_hash() if isinstance(value, DatasetImage) else str(value)
