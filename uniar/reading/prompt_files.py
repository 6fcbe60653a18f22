"""Prompt files in the forms that people have them in, all read into the same records.

- `.jsonl`, `.ndjson`, `.jsonlines`: an object per line. `.json`: an array of objects or of strings, or such lines.
- `.txt`: a prompt per line. A folder of `.txt` files: a prompt per file, whose name is its id.
- `.csv`, `.tsv`: a row per record below a line of column names; an empty cell is a field left out. Commas, semicolons,
  tabs or `|` part the columns, whichever part the names; a first line `sep=;` says which, as Excel writes it.
- `.parquet`: a row per record, without pictures.
- A folder of such files, no splits among them: the rows of all.

Any of them may be compressed with gzip (`.jsonl.gz`). The fields of a record:

- `prompt`, or `instruction` as in UniAR's RL files, or `prompt_en` as in OneIG's; or the one that `prompt_key` names.
- `id`, or `idx` as in UniAR's evaluation files.
- `task`, or `task_type` as in T2I-R1's.
- `metadata`, or `meta` as in UniAR's evaluation files: an object for the rewards.
- `answer`: what is right, for the rewards, which see it in the metadata: a text, a number, or a list of right ones.
- `height` and `width`: the size of this image as the model draws it, in pixels; without them the usual one.
- `image`, or `input_image`, there or in the metadata; or the one that `image_key` names: a picture to edit.
- `number`, the count of lines in UniAR's files, is passed over; any other field is metadata. A path of a picture under
  another name, such as `image_path`, is refused where there is no `image`: what rewards look at belongs in `metadata`.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from uniar.errors import UserError
from uniar.reading.files import ADDRESS
from uniar.reading.json_lines import JsonLine, describe
from uniar.reading.prompt_text import check_text

SIDES = ("height", "width")
FIELDS = ("prompt", "instruction", "id", "task", "metadata", "image", "number", "answer", *SIDES)
_NO_SLIPS = ("answers",)
_LISTED = 5
Record = TypeVar("Record")
_PROMPT, IDS, _TASK, _METADATA, _IMAGE = (
    ("prompt", "instruction", "prompt_en"),
    ("id", "idx"),
    ("task", "task_type"),
    ("metadata", "meta"),
    ("image", "input_image"),
)
_PICTURE_WORDS = re.compile(r"(?i)(?:^|[_-])(?:image|img|picture|pic|photo)s?(?=[_-]|$)")
_NOT_TO_EDIT = re.compile(r"(?i)target|truth|gt|output|result|edited|mask|generated")
_PICTURE = re.compile(r"(?is).*\.(?:png|jpe?g|webp|bmp|gif|tiff?|avif|jp2)")


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
    sides: tuple[int | None, int | None] = (None, None)
    """height and width in pixels"""


def read_record(line: JsonLine, keys: Keys | None = None, default_prompt: str | None = None) -> PromptLine:
    """The record in a row. Without a `default_prompt` every row needs a prompt that `check_text` accepts. Raises
    UserError for a field of another kind, a slip, and a prompt that is missing or refused."""
    keys, values, where = keys or Keys(), line.values, line.where
    aliases = (keys.prompt, keys.image, *_PROMPT, *IDS, *_TASK, *_METADATA, *_IMAGE)
    line.refuse_slips(FIELDS, passing=(*aliases, *_NO_SLIPS))
    used = {"number"}

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
    if not images and keys.image is None:
        _refuse_pictures_elsewhere(line)
    sides = _side(take, "height", where), _side(take, "width", where)
    _check_answer(line)
    extra = {name: value for name, value in values.items() if name not in used}
    for name in extra.keys() & (metadata or {}).keys():
        raise UserError(f"{where}: '{name}' is given both as a field and in metadata.")
    text = default_prompt if prompt is None and default_prompt is not None else prompt
    return PromptLine(line, text, own_id, task, {**(metadata or {}), **extra}, images, sides)


def _side(take: Callable[..., Any], name: str, where: str) -> int | None:
    """Pixels; None where the record does not say."""
    given = take(name, (int, str), "a whole number of pixels")
    if given is None:
        return None
    if not str(given).isdecimal() or int(given) == 0:  # a cell of a table is text
        raise UserError(f"{where}: '{name}' is {given!r}, expected a whole number of pixels above 0.")
    return int(given)


def _check_answer(line: JsonLine) -> None:
    """Raises UserError for an answer that is none."""
    expected = "a text, a number, or a list of them, any of which is right"
    for answer in given if isinstance(given := line.get("answer", (str, int, float, list), expected), list) else ():
        if not isinstance(answer, str | int | float) or isinstance(answer, bool):
            raise UserError(f"{line.where}: 'answer' lists {describe(answer)}, expected {expected}.")
    if given == []:
        raise UserError(f"{line.where}: 'answer' is an empty list; leave the field out where nothing is right.")


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
    wanted = f"'{given}'" if given else "'prompt' (or 'instruction')"
    texts = [f"'{name}'" for name, value in line.values.items() if name not in _PROMPT and isinstance(value, str)]
    others = texts or [f"'{name}'" for name in line.values if name not in _PROMPT]
    what = "prompt_key can name another" if texts else "found"
    there = f"; {what}: {', '.join(others[:_LISTED])}" if others else ""
    raise UserError(f"{line.where}: the field {wanted} is missing{there}.")


def _images(line: JsonLine, given: str | None, metadata: dict[str, Any], take: Callable[..., Any]) -> tuple[Any, ...]:
    """The pictures to edit, as they were given."""
    name, image = given or "image", None
    if given is None or given in line.values:
        image = take(name, (str, list, StoredPicture), "the path of a picture")
    if image is None and given is None:
        name, kinds = "input_image", (str, StoredPicture)
        image = take(name, kinds, "") if isinstance(line.values.get(name), kinds) else metadata.get(name)
        image = image if isinstance(image, kinds) else None
    elif image is None and given is not None and (image := metadata.get(given)) is None:
        raise UserError(f"{line.where}: the field '{given}' (image_key) is missing.")
    if image == []:
        raise UserError(f"{line.where}: '{name}' is an empty list; leave the field out where there is no picture.")
    images = tuple(image) if isinstance(image, list) else () if image is None else (image,)
    for each in images:
        if each == "":
            raise UserError(f"{line.where}: '{name}' is empty.")
        if isinstance(image, list) and not isinstance(each, str):
            raise UserError(f"{line.where}: '{name}' lists something that is not a path.")
    return images


def _refuse_pictures_elsewhere(line: JsonLine) -> None:
    """A record that names a picture in a field that is not read would be drawn from scratch, and nobody would know."""
    for name, value in line.values.items():
        if not _PICTURE_WORDS.search(name) or _NOT_TO_EDIT.search(name):
            continue
        for each in value if isinstance(value, list) else [value]:
            path = each.get("path") or each.get("url") if isinstance(each, dict) else each
            named = isinstance(path, str) and (_PICTURE.fullmatch(path) or ADDRESS.match(path))
            if named or isinstance(path, StoredPicture):
                raise UserError(
                    f"{line.where}: '{name}' names a picture, and the picture to edit is 'image'; call it so, name the "
                    "field by image_key, or put it into 'metadata' if it is for the rewards."
                )
