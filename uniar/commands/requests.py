"""What to draw: requests from the command line or from a JSONL file, checked before any weight is loaded.

A line is an object with `prompt` (or `instruction`), and optionally `id`, `height`, `width` and, to edit, `image` (a
path from the file's folder). Other fields are passed over, so the files that training uses serve here too.
"""

import argparse
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from uniar.errors import UserError
from uniar.json_lines import JsonLine, is_unicode, read_json_lines
from uniar.pictures import check_picture, editing_size, load_picture, picture_digest
from uniar.processing import check_size

FIELDS = ("prompt", "instruction", "id", "height", "width", "image")
RESERVED = ("<|image_pad|>", "<|video_pad|>")
"""Tokens that stand for the pictures themselves; a text cannot contain them."""

_LONGEST_NAME = 200
_SLUG = 40


@dataclass(frozen=True)
class Request:
    """One prompt to draw, or one picture to edit."""

    name: str
    """what its files begin with, unique within a run: the line's id or number, or words of the prompt"""
    prompt: str
    height: int
    """of the image as the model draws it, in pixels"""
    width: int
    copy: int = 0
    """how many earlier requests have the same prompt and picture; keeps their noise apart"""
    picture: Path | None = None
    picture_digest: str | None = None


@dataclass(frozen=True)
class Question:
    """A prompt and its pictures, not yet given a size: what all commands read."""

    where: str
    name: str
    prompt: str
    pictures: tuple[Path, ...]
    line: JsonLine | None = None


def add_prompt_options(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--prompt", help=what)
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE.jsonl",
        help="many of them, an object with `prompt` a line and optionally an `id`",
    )


def read_questions(arguments: argparse.Namespace, given_pictures: tuple[Path, ...]) -> list[Question]:
    """The prompt of --prompt, or those of --prompts in their order; `given_pictures` serve prompts without their own.

    Raises UserError for neither or both, an empty file, a broken line or field, an empty prompt, and names that clash.
    """
    if (arguments.prompt is None) == (arguments.prompts is None):
        raise UserError("give the prompt with --prompt, or a file of them with --prompts FILE.jsonl; one of the two.")
    if arguments.prompt is not None:
        check_prompt(arguments.prompt, "--prompt")
        return [Question("--prompt", slug(arguments.prompt), arguments.prompt, given_pictures)]
    lines = read_json_lines(arguments.prompts)
    if not lines:
        raise UserError(f"the file '{arguments.prompts}' has no prompts; at least one is needed.")
    questions, named = [], {}
    for line in lines:
        question = _question(line, given_pictures)
        if (earlier := named.setdefault(question.name, line.number)) != line.number:
            raise UserError(f"{line.where}: its name '{question.name}' is already that of line {earlier}.")
        questions.append(question)
    return questions


def drawing_requests(
    questions: Sequence[Question], arguments: argparse.Namespace, pixels_per_token: int
) -> list[Request]:
    """For `generate`. Raises UserError for an invalid size, an id that cannot be a file name, and a line with an
    image."""
    requests = []
    for question in questions:
        if question.pictures:
            raise UserError(f"{question.where}: it has an image to edit; `uniar-rl edit` does that.")
        _check_name(question)
        height, width = _sides(question.line)
        request = Request(question.name, question.prompt, height or arguments.height, width or arguments.width)
        requests.append(_checked(request, question.where, pixels_per_token))
    return _numbered(requests)


def editing_requests(
    questions: Sequence[Question], arguments: argparse.Namespace, pixels_per_token: int
) -> list[Request]:
    """For `edit`. Raises UserError for an invalid size, an id that cannot be a file name, and a prompt without one
    readable image."""
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
        own_height, own_width = _sides(question.line)
        asked = own_height or arguments.height, own_width or arguments.width
        height, width = editing_size(load_picture(picture), pixels_per_token, *asked)
        if picture not in digests:
            digests[picture] = picture_digest(picture)
        request = Request(question.name, question.prompt, height, width, 0, picture, digests[picture])
        requests.append(_checked(request, question.where, pixels_per_token))
    return _numbered(requests)


def _question(line: JsonLine, given_pictures: tuple[Path, ...]) -> Question:
    line.refuse_slips(FIELDS)
    if "prompt" in line.values and "instruction" in line.values:
        raise UserError(f"{line.where}: 'prompt' and 'instruction' are two names of one field; give one of them.")
    prompt = line.get("instruction" if "instruction" in line.values else "prompt", str, "a text")
    if prompt is None:
        raise UserError(f"{line.where}: the field 'prompt' (or 'instruction') is missing.")
    check_prompt(prompt, line.where)
    identity = line.get("id", (str, int), "a text or a whole number")
    name = str(line.number if identity is None else identity)
    pictures = line.get("image", (str, list), "a path, or a list of paths")
    pictures = [pictures] if isinstance(pictures, str) else pictures or []
    if not all(isinstance(picture, str) for picture in pictures):
        raise UserError(f"{line.where}: 'image' lists something that is no path.")
    own = tuple(line.path.parent / picture for picture in pictures)
    for picture in own:
        check_picture(picture, f"{line.where}: the image '{picture}'")
    return Question(line.where, name, prompt, own or given_pictures, line)


def check_prompt(prompt: str, where: str) -> None:
    """Raises UserError for an empty prompt, and for one with a token that stands for a picture."""
    if not prompt.strip():
        raise UserError(f"{where}: the prompt is empty.")
    if not is_unicode(prompt):
        raise UserError(f"{where}: the prompt is not text in UTF-8.")
    for token in RESERVED:
        if token in prompt:
            raise UserError(f"{where}: the prompt contains {token}, which stands for a picture; leave it out.")


def _check_name(question: Question) -> None:
    """Raises UserError for an id that cannot be the beginning of a file name."""
    name = question.name
    if not name or name.startswith(".") or any(c in '/\\:*?"<>|' or not c.isprintable() for c in name):
        raise UserError(
            f"{question.where}: the id '{name}' cannot be a file name; use letters, digits, '-', '_' and '.'."
        )
    if len(name.encode()) > _LONGEST_NAME:
        raise UserError(f"{question.where}: the id has {len(name.encode())} bytes; a file name takes {_LONGEST_NAME}.")


def _sides(line: JsonLine | None) -> tuple[int | None, int | None]:
    """The line's own height and width."""
    if line is None:
        return None, None
    sides = [line.get(name, int, "a whole number of pixels") for name in ("height", "width")]
    for name, side in zip(("height", "width"), sides, strict=True):
        if side is not None and side <= 0:
            raise UserError(f"{line.where}: '{name}' is {side}, expected a whole number of pixels above 0.")
    return sides[0], sides[1]


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
