"""What an image was drawn from, kept in the image itself: a PNG text entry, by which a later run knows that the file is
complete and is what it would draw. A folder's manifest.jsonl gathers these records."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from uniar.errors import UserError
from uniar.reading.files import whole_file, write_whole, writing

PNG_KEY = "uniar-rl"
MANIFEST = "manifest.jsonl"
REMARKS = ("file", "id", "model", "image")
"""Entries that may differ between runs that draw the same: names and places."""


def difference(record: dict[str, Any], found: dict[str, Any]) -> str | None:
    """The first setting in which two records differ, in words; None if they tell of the same."""
    for name in [*record, *(name for name in found if name not in record)]:
        if name not in REMARKS and record.get(name) != found.get(name):
            return f"{name} {found.get(name)!r}, not {record.get(name)!r}"
    return None


def read_record(path: Path) -> dict[str, Any] | None:
    """The record in a PNG; None for a file that `write_image` did not write."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            record = json.loads(image.info.get(PNG_KEY, "null"))
    except Exception:  # Pillow's readers raise anything on broken files
        return None
    return record if isinstance(record, dict) else None


def is_drawn(path: Path, record: dict[str, Any]) -> bool:
    """Whether the file is there as it would be drawn. Raises UserError for any other file in its place."""
    if not path.exists():
        return False
    found = read_record(path)
    if found is None:
        raise UserError(f"{path} exists and was not drawn by this command; name another --output, or use --overwrite.")
    if other := difference(record, found):
        raise UserError(f"{path} was drawn with {other}; name another --output, or use --overwrite to draw it again.")
    return True


def write_image(image: Image.Image, path: Path, record: dict[str, Any]) -> None:
    """Writes a PNG with its record, whole or not at all. Raises UserError where that cannot be."""
    text = PngInfo()
    text.add_itxt(PNG_KEY, json.dumps(record, ensure_ascii=False))
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as unfinished:
            image.save(unfinished, format="PNG", pnginfo=text)


def check_manifest(folder: Path) -> None:
    """Raises UserError if the folder's manifest is somebody else's, which writing ours would destroy."""
    file = folder / MANIFEST
    if not file.exists():
        return
    try:
        with file.open(encoding="utf-8") as lines:
            first = json.loads(next(lines, '{"file": null}'))
    except (OSError, ValueError):
        first = None
    if not isinstance(first, dict) or "file" not in first:
        raise UserError(f"{file} exists and is not a manifest of drawn images; name another folder with --output.")


def write_manifest(folder: Path, own: Sequence[Path], pattern: str) -> None:
    """Lists the records of all drawn images in `folder` that match `pattern`: `own` in their order, then the others by
    name. Raises UserError where that cannot be."""
    drawn = {path.relative_to(folder).as_posix(): read_record(path) for path in sorted(folder.glob(pattern))}
    order = list(dict.fromkeys([path.relative_to(folder).as_posix() for path in own] + list(drawn)))
    records = ({"file": name, **record} for name in order if (record := drawn.get(name)))
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    if not lines and not (folder / MANIFEST).exists():
        return
    with writing(folder / MANIFEST):
        write_whole(folder / MANIFEST, "".join(lines))
