"""Prompts to train and evaluate on, as PromptRecords: prompt files (uniar/reading/prompt_files.py says in which forms
and with which fields), `datasets` datasets, and YAML mixes of both:

    datasets:
      - name: counting
        json_path: data/counting.jsonl
        sampled_ratio: 0.5        # up to 1 a fixed random part, above 1 so many rows, at most all

Ids do not depend on the order of files or lines, nor on the process that loads them: they are hashes of the content, or
the file's own, and seed the noise of rollouts.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from rl.data.dataset_rows import DATASETS, DatasetImage, is_dataset, read_dataset, split_of
from uniar.errors import UserError, did_you_mean
from uniar.reading.files import user_path
from uniar.reading.json_lines import JsonLine
from uniar.reading.pictures import check_picture, load_picture, picture_name, picture_path, picture_to_edit
from uniar.reading.prompt_files import SIDES, Keys, PromptLine, StoredPicture, read_all, read_record
from uniar.reading.prompt_forms import read_prompt_file
from uniar.reading.settings import build, origin_of, setting
from uniar.reading.yaml_files import read_yaml

TAGS = ("tag", "category", "edit_type")
"""keys of the metadata that say what skill a prompt is about: GenEval's, OneIG's, ImgEdit's"""


@dataclass(frozen=True)
class PromptRecord:
    """One prompt.

    Attributes:
        prompt: the text to draw, or the edit to make.
        task: what kind of prompt it is; rewards can be limited to tasks. None where the file names none.
        metadata: whatever rewards need to know of it (a target text, object counts, …).
        image: the picture to edit, not read yet; None to draw from scratch.
        size: (height, width) of the image as the model draws it, in pixels; None for the usual one.
        id: unique within what was loaded together, and stable (see the module's head).
    """

    prompt: str
    task: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    image: str | StoredPicture | None = None
    id: str = ""
    size: tuple[int, int] | None = None
    where: str = field(default="", compare=False, repr=False)
    """file and line, for errors"""
    row: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """the fields as they were read"""

    @property
    def tag(self) -> str | None:
        """The skill that the prompt is about; None where its metadata name none."""
        return next((self.metadata[key] for key in TAGS if isinstance(self.metadata.get(key), str)), None)

    @cached_property
    def pictures(self) -> tuple[Image.Image, ...]:
        """The picture to edit or to ask about in RGB, one or none, read at the first use and kept. Raises UserError if
        it cannot be read."""
        image = self.load_image()
        return () if image is None else (image,)

    def load_image(self) -> Image.Image | None:
        """The picture to edit in RGB, or None. Raises UserError if it cannot be read."""
        return None if self.image is None else load_picture(*self._picture())

    def image_to_edit(self, height: int, width: int) -> Image.Image:
        """The picture to edit in the size of the image to draw, in pixels. Raises UserError if it cannot be read."""
        return picture_to_edit(self._picture()[0], height, width, self._picture()[1])

    def _picture(self) -> tuple[str | bytes, str]:
        assert self.image is not None  # as its callers have seen
        content = self.image.content() if isinstance(self.image, StoredPicture) else self.image
        return content, f"{picture_name(str(self.image))} of prompt {self.id}"


@dataclass(frozen=True)
class MixEntry:
    """One file of a YAML mix."""

    json_path: str = setting(
        "Prompt file, folder of such, or `datasets:NAME[:SPLIT]`, as for data.prompts; a relative path starts "
        "from the current folder, or else the mix's folder or one above it.",
        path=True,
    )
    name: str | None = setting("What to call it; null: the file's name.", None)
    sampled_ratio: float = setting(
        "How much of it to take. Up to 1: that share of the rows, chosen by data.seed and the content. Above 1: that "
        "many rows, a whole number, at most all. To give a file more weight, list it again under another name.",
        1.0,
        gt=0,
    )
    prompt_key: str | None = setting("Like data.prompt_key; null: that key.", None)
    image_key: str | None = setting("Like data.image_key; null: that key.", None)


@dataclass(frozen=True)
class _Row:
    """A record before it has its final id: `key` is the content's hash, or the file's own id."""

    key: str
    record: PromptRecord


def load_prompts(
    source: str | Path, image_root: str | Path | None = None, seed: int = 0, keys: Keys | None = None
) -> list[PromptRecord]:
    """All prompts of `source`: a prompt file, a folder of such, a YAML mix, or `datasets:NAME[:SPLIT]` (of the
    Hugging Face hub, or a folder that `save_to_disk` wrote).

    image_root: folder that relative image paths start from; None: the folder of the prompt file.
    seed: which part of a file a sampled_ratio takes. keys: the fields that hold prompt and image.
    Raises UserError naming file and line: missing file, broken row, missing or mistyped field, a prompt that
    `check_text` refuses, an image that cannot be read, no prompts at all, an id given twice.
    """
    name, keys = str(source), keys or Keys()
    if not name.strip():
        raise UserError("the prompts are named ''; name a prompt file, a .yaml mix or datasets:NAME[:SPLIT].")
    if not name.startswith(DATASETS):
        name = str(user_path(name))
    mix = Path(name).suffix in (".yaml", ".yml")
    rows = _mix_rows(Path(name), image_root, seed, keys) if mix else _rows(read_lines(name), name, image_root, keys)
    return _with_ids(rows, name)


def read_lines(name: str) -> list[JsonLine]:
    """The rows of a prompt file, a folder of `.txt` files or a dataset, with whatever fields they have. Raises
    UserError as `load_prompts` does."""
    return list(read_dataset(name.removeprefix(DATASETS))) if is_dataset(name) else read_prompt_file(Path(name))


def prompts_of(lines: Sequence[JsonLine], name: str, image_root: str | Path | None = None) -> list[PromptRecord]:
    """The prompts in rows that were read from `name`, and perhaps rewritten. Raises as `load_prompts` does."""
    return _with_ids(_rows(lines, name, image_root, Keys()), name)


def _with_ids(rows: Sequence[_Row], name: str) -> list[PromptRecord]:
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


def _rows(
    lines: Sequence[JsonLine], name: str, image_root: str | Path | None, keys: Keys, id_prefix: str = ""
) -> list[_Row]:
    """The records in the rows of one file, folder or dataset."""
    dataset = is_dataset(name)
    places: dict[str, str] = {}

    def read(line: JsonLine) -> _Row:
        found = read_record(line, keys)
        if len(found.images) > 1:
            raise UserError(f"{line.where}: there are {len(found.images)} images; an edit has one.")
        image = found.images[0] if found.images else None
        size = _size(found)
        key = f"{id_prefix}{found.id}"
        if found.id is None:
            key = _hash(found.prompt, found.task, found.metadata, image, *(size or ()))
        elif key in places:
            raise UserError(f"{line.where}: the id {found.id!r} was given in {places[key]}.")
        places[key] = line.where if line.place else f"line {line.number}"
        if isinstance(image, str):
            root = Path(image_root) if image_root is not None else Path() if dataset else line.path.parent
            image = str(picture_path(image, root, line.where))
        if image is not None:
            content = image.content() if isinstance(image, StoredPicture) else image
            check_picture(content, f"{line.where}: {picture_name(image)}")
        record = PromptRecord(
            found.prompt, found.task, found.metadata, image, size=size, where=line.where, row=line.values
        )
        return _Row(key, record)

    return read_all(lines, read)


def _size(found: PromptLine) -> tuple[int, int] | None:
    height, width = found.sides
    if height is not None and width is not None:
        return height, width
    if height is None and width is None:
        return None
    given, missing = SIDES if width is None else SIDES[::-1]
    raise UserError(
        f"{found.line.where}: '{given}' is given without '{missing}'; a size needs both, and what rewards look at "
        "belongs in 'metadata'."
    )


def _mix_rows(path: Path, image_root: str | Path | None, seed: int, keys: Keys) -> list[_Row]:
    content, origins = read_yaml(path, "prompt mix")
    if not isinstance(content, dict) or not isinstance(content.get("datasets"), list):
        raise UserError(f"{path}: a prompt mix needs the key 'datasets' with a list of files.")
    for key in content:
        if key != "datasets":
            raise UserError(f"{origin_of((key,), origins)}: unknown key '{key}'.{did_you_mean(key, ['datasets'])}")
    rows: list[_Row] = []
    names: dict[str, str] = {}
    for i, item in enumerate(content["datasets"]):
        place = ("datasets", str(i))
        entry = build(MixEntry, item, place, origins)
        where = origin_of(place, origins)
        source = _find_beside(entry.json_path, path, where)
        name = entry.name or Path(source.removeprefix(DATASETS)).stem
        if name in names:
            raise UserError(f"{where}: the name '{name}' was given to the file of {names[name]}; names must differ.")
        names[name] = where
        own_keys = Keys(entry.prompt_key or keys.prompt, entry.image_key or keys.image)
        try:
            found = _rows(read_lines(source), source, image_root, own_keys, f"{name}/")
            rows += _take(found, entry.sampled_ratio, seed)
        except UserError as error:
            raise error if str(path) in str(error) else UserError(f"{where}: {error}") from error
    return rows


def _find_beside(name: str, mix: Path, where: str) -> str:
    """A source that a mix names: from the current folder, else from the mix's folder or one above it, else, since mixes
    travel with their files, by the last parts of its path in the mix's folder. Raises UserError for a file that is in
    none of them; a dataset may be on the hub."""
    path, split = split_of(name.removeprefix(DATASETS)) if name.startswith(DATASETS) else (name, "")
    here = mix.resolve().parent
    tails = [Path(*Path(path).parts[i:]) for i in range(1, len(Path(path).parts))]
    candidates = [Path(path), *(folder / path for folder in (here, *here.parents)), *(here / tail for tail in tails)]
    found = next((candidate for candidate in candidates if candidate.exists()), None)
    if name.startswith(DATASETS):
        return name if found is None else f"{DATASETS}{found}:{split}"
    if found is None:
        raise UserError(f"{where}: the file '{name}' of the mix does not exist.")
    return str(found)


def _take(rows: list[_Row], ratio: float, seed: int) -> list[_Row]:
    """Up to a ratio of 1 so large a part of the rows, above so many of them: those with the smallest hashes, so that
    seed and content alone decide."""
    if ratio > 1 and not ratio.is_integer():
        raise UserError(
            f"sampled_ratio is {ratio}; expected a part of the file, up to 1, or a whole number of its rows."
        )
    counts: Counter[str] = Counter()
    ranked = []
    for index, row in enumerate(rows):
        counts[row.key] += 1
        ranked.append((_hash(seed, row.key, counts[row.key]), index))
    wanted = int(ratio) if ratio > 1 else max(round(ratio * len(rows)), 1)  # a tiny part of a small file is still one
    chosen = {index for _, index in sorted(ranked)[:wanted]}
    return [row for index, row in enumerate(rows) if index in chosen]


def _hash(*parts: Any) -> str:
    """16 hex digits of SHA-256 over the parts as JSON, object keys in order."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=_plain)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _plain(value: Any) -> str:
    """What JSON has no form for: a picture of a dataset by its content, anything else (a date, say) as text."""
    return value.content_hash() if isinstance(value, DatasetImage) else str(value)
