"""Pictures to score, from the command line: files, a folder, or a JSONL file with a prompt for each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewards.contract.base import RewardBatch
from uniar.errors import UserError
from uniar.reading.json_lines import JsonLine, read_json_lines
from uniar.reading.pictures import check_picture, load_picture, picture_path
from uniar.reading.prompt_files import read_all, read_record
from uniar.reading.prompt_forms import JSON_LINES

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


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

    Raises UserError for what does not exist, and for a line that is not such an object.
    """
    pictures: list[Picture] = []
    for source in sources:
        if source.suffix in JSON_LINES:
            pictures += read_all(read_json_lines(source), lambda line: _picture(line, prompt, task, metadata))
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


def _picture(line: JsonLine, prompt: str, task: str | None, metadata: dict[str, Any]) -> Picture:
    record = read_record(line, default_prompt=prompt)
    if len(record.images) != 1:
        raise UserError(f"{line.where}: an object with the field 'image', a path, is needed.")
    return Picture(
        picture_path(record.images[0], line.path.parent, line.where),
        record.prompt,
        task if record.task is None else record.task,
        {**metadata, **record.metadata},
    )
