"""Pictures to score, from the command line: files, a folder, or a JSONL file with a prompt for each."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewards.base import RewardBatch
from uniar.errors import UserError
from uniar.pictures import check_picture, load_picture

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_FIELDS = ("image", "prompt", "task", "metadata")


@dataclass(frozen=True)
class Picture:
    """A picture that was not read yet, and what it was drawn from."""

    path: Path
    prompt: str
    task: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def read_pictures(sources: Sequence[Path], prompt: str, task: str | None, metadata: dict[str, Any]) -> list[Picture]:
    """The pictures of files, folders (in the order of their names) and JSONL files, whose lines have `image` (a path
    from the file's folder), `prompt`, `task` and `metadata`; any other field of a line counts as metadata.

    Raises UserError for what does not exist, and for a line that is no such object.
    """
    pictures: list[Picture] = []
    for source in sources:
        if source.suffix == ".jsonl":
            pictures += _lines(source, prompt, task, metadata)
        elif source.is_dir():
            files = sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES)
            if not files:
                raise UserError(f"the folder '{source}' has no picture ({', '.join(SUFFIXES)}).")
            pictures += [Picture(path, prompt, task, metadata) for path in files]
        else:
            pictures.append(Picture(source, prompt, task, metadata))
    for picture in pictures:
        check_picture(picture.path, f"the picture '{picture.path}'")
    return pictures


def batches(pictures: Sequence[Picture], size: int) -> Iterator[RewardBatch]:
    """The pictures in order, `size` at a time. Raises UserError for one that cannot be read."""
    for start in range(0, len(pictures), size):
        part = pictures[start : start + size]
        yield RewardBatch(
            prompts=[picture.prompt for picture in part],
            images=[load_picture(picture.path, f"the picture '{picture.path}'") for picture in part],
            tasks=[picture.task for picture in part],
            metadata=[picture.metadata for picture in part],
        )


def _lines(path: Path, prompt: str, task: str | None, metadata: dict[str, Any]) -> Iterator[Picture]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"the file '{path}' does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the file '{path}' cannot be read: {error}.") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not valid JSON: {error}.") from error
        if not isinstance(values, dict) or not isinstance(values.get("image"), str):
            raise UserError(f"{where}: an object with the field 'image', a path, is needed.")
        for key, kind, words in (("prompt", str, "a text"), ("task", str, "a text"), ("metadata", dict, "an object")):
            if values.get(key) is not None and not isinstance(values[key], kind):
                raise UserError(f"{where}: '{key}' is {values[key]!r}, {words} is needed.")
        own = {key: value for key, value in values.items() if key not in _FIELDS}
        yield Picture(
            path.parent / values["image"],
            prompt if values.get("prompt") is None else values["prompt"],
            task if values.get("task") is None else values["task"],
            {**metadata, **own, **(values.get("metadata") or {})},
        )
