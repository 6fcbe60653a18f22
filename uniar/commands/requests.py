"""What to draw: requests from the command line or from a prompt file, checked before any weight is loaded.

Any prompt file that training reads serves here (uniar/reading/prompt_forms.py), with `height` and `width` besides; a
picture's path starts from the file's folder. Tasks and metadata are passed over.
"""

import argparse
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from uniar.errors import UserError
from uniar.processing import check_size
from uniar.reading.files import user_path
from uniar.reading.json_lines import JsonLine
from uniar.reading.pictures import check_picture, editing_size, load_picture, picture_digest, picture_name, picture_path
from uniar.reading.prompt_files import Keys, read_all, read_record
from uniar.reading.prompt_forms import read_prompt_file
from uniar.reading.prompt_text import check_text

_LONGEST_NAME = 200
_SLUG = 40


@dataclass(frozen=True)
class Request:
    """One prompt to draw, or one picture to edit."""

    name: str
    """what its files begin with, unique within a run: the line's id, or its line or entry, or words of the prompt"""
    prompt: str
    height: int
    """of the image as the model draws it, in pixels"""
    width: int
    copy: int = 0
    """how many earlier requests have the same prompt and picture; keeps their noise apart"""
    picture: Path | None = None
    picture_digest: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """of the prompt's line, for UniAR's metadata.json"""


@dataclass(frozen=True)
class Question:
    """A prompt and its pictures, not yet given a size: what all commands read."""

    where: str
    name: str
    prompt: str
    pictures: tuple[Path, ...]
    line: JsonLine | None = None
    sides: tuple[int | None, int | None] = (None, None)
    """its own height and width"""

    @property
    def fields(self) -> dict[str, Any]:
        return {"prompt": self.prompt, **({} if self.line is None else self.line.values)}


def read_questions(arguments: argparse.Namespace, given_pictures: tuple[Path, ...]) -> list[Question]:
    """The prompt of --prompt, or those of --prompts in their order; `given_pictures` serve prompts without their own.

    Raises UserError for neither or both, an empty file, a broken line or field, an empty prompt, and names that clash.
    """
    if (arguments.prompt is None) == (arguments.prompts is None):
        raise UserError("give the prompt with --prompt, or a file of them with --prompts FILE; one of the two.")
    if arguments.prompt is not None:
        check_text(arguments.prompt, "--prompt: the prompt")
        return [Question("--prompt", slug(arguments.prompt), arguments.prompt, given_pictures)]
    named: dict[str, str] = {}

    def read(line: JsonLine) -> Question:
        keys = Keys(arguments.prompt_key, arguments.image_key)
        question = _question(line, keys, given_pictures, arguments.image_root)
        if earlier := named.get(question.name):
            earlier = earlier.removeprefix(f"{line.path}, ")
            raise UserError(f"{line.where}: its name '{question.name}' is already that of {earlier}.")
        named[question.name] = line.where
        return question

    return read_all(read_prompt_file(arguments.prompts), read)


def numbered_as_uniar(questions: Sequence[Question]) -> list[Question]:
    """The questions named by UniAR's `idx`, five digits: the line's own, or its place, from 0. Raises UserError for one
    that is not a number or occurs twice."""
    named: dict[str, str] = {}
    numbered = []
    for place, question in enumerate(questions):
        idx = question.fields.get("idx", place)
        if not str(idx).isdecimal():
            raise UserError(f"{question.where}: 'idx' is {idx!r}; UniAR's layout needs a whole number, 0 or more.")
        name = f"{int(idx):05d}"
        if earlier := named.get(name):
            raise UserError(f"{question.where}: its idx {int(idx)} is already that of {earlier}.")
        named[name] = question.where
        numbered.append(replace(question, name=name))
    return numbered


def drawing_requests(
    questions: Sequence[Question], arguments: argparse.Namespace, pixels_per_token: int, side: int
) -> list[Request]:
    """For `generate`; `side` is that of drawings for which no size is given.

    Raises UserError for an invalid size, an id that cannot be a file name, and a line with an image.
    """
    default = [side if given is None else given for given in (arguments.height, arguments.width)]
    requests = []
    for question in questions:
        if question.pictures:
            raise UserError(f"{question.where}: it has an image to edit; `uniar-rl edit` does that.")
        _check_name(question)
        height, width = question.sides
        sides = height or default[0], width or default[1]
        request = Request(question.name, question.prompt, *sides, fields=question.fields)
        requests.append(_checked(request, question.where, pixels_per_token))
    return _numbered(requests)


def editing_requests(
    questions: Sequence[Question], arguments: argparse.Namespace, pixels_per_token: int, side: int
) -> list[Request]:
    """For `edit`; without a size, edits are drawn as large as their pictures, or as a square of `side` pixels.

    Raises UserError for an invalid size, an id that cannot be a file name, and a prompt without one readable image.
    """
    requests, digests = [], {}
    for question in questions:
        if len(question.pictures) != 1:
            raise UserError(
                f"{question.where}: there is no image to edit; name it with --image or in a line's field 'image'."
                if not question.pictures
                else f"{question.where}: 'image' lists {len(question.pictures)} pictures; an edit has one."
            )
        _check_name(question)
        (picture,) = question.pictures
        own_height, own_width = question.sides
        asked = own_height or arguments.height, own_width or arguments.width
        height, width = editing_size(load_picture(picture), pixels_per_token, side**2, *asked)
        if picture not in digests:
            digests[picture] = picture_digest(picture)
        digest = digests[picture]
        request = Request(question.name, question.prompt, height, width, 0, picture, digest, question.fields)
        requests.append(_checked(request, question.where, pixels_per_token))
    return _numbered(requests)


def _question(line: JsonLine, keys: Keys, given_pictures: tuple[Path, ...], root: Path | None) -> Question:
    record = read_record(line, keys)
    folder = line.path.parent if root is None else user_path(root)
    own = [picture_path(picture, folder, line.where) for picture in record.images]
    for picture in own:
        check_picture(picture, f"{line.where}: {picture_name(picture)}")  # which refuses an address
    name = str(line.number if record.id is None else record.id)
    return Question(line.where, name, record.prompt, tuple(map(Path, own)) or given_pictures, line, record.sides)


def _check_name(question: Question) -> None:
    """Raises UserError for an id that cannot be the beginning of a file name."""
    name = question.name
    if not name or name.startswith(".") or any(c in '/\\:*?"<>|' or not c.isprintable() for c in name):
        raise UserError(
            f"{question.where}: the id '{name}' cannot be a file name; use letters, digits, '-', '_' and '.'."
        )
    if len(name.encode()) > _LONGEST_NAME:
        raise UserError(f"{question.where}: the id has {len(name.encode())} bytes; a file name takes {_LONGEST_NAME}.")


def _checked(request: Request, where: str, pixels_per_token: int) -> Request:
    check_size(request.height, request.width, pixels_per_token, f"{where}: ")
    return request


def _numbered(requests: list[Request]) -> list[Request]:
    """Numbers requests with the same prompt and picture."""
    seen: Counter[tuple] = Counter()
    numbered = []
    for request in requests:
        key = (request.prompt, request.picture_digest)
        numbered.append(replace(request, copy=seen[key]))
        seen[key] += 1
    return numbered


def slug(prompt: str) -> str:
    """A file name of the prompt's letters and digits; a cut one ends in a hash, so that two prompts do not share it."""
    words = "".join(c.lower() if c.isalnum() else " " for c in prompt).split()
    slug = "-".join(words)
    if slug and len(slug) <= _SLUG and len(slug.encode()) <= _LONGEST_NAME:
        return slug
    cut = slug.encode()[:_SLUG].decode(errors="ignore").strip("-")
    digest = hashlib.sha256(prompt.encode()).hexdigest()[:8]
    return f"{cut}-{digest}" if cut else digest
