"""Questions about pictures with their answers: a JSONL file of objects with `image`, `question` and `answer`."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from uniar.commands.requests import RESERVED
from uniar.errors import UserError
from uniar.json_lines import JsonLine, read_json_lines
from uniar.pictures import check_picture, load_picture

FIELDS = ("image", "question", "answer")


@dataclass(frozen=True)
class QuestionRecord:
    """A question about a picture, and the answer that is right."""

    image: Path
    question: str
    answer: str

    def load_image(self) -> Image.Image:
        """The picture in RGB. Raises UserError if it cannot be read."""
        return load_picture(self.image)


def load_questions(
    source: str | Path, image_root: str | Path | None = None, limit: int | None = None
) -> list[QuestionRecord]:
    """The questions of a JSONL file, in its order; fields other than `image`, `question`, `answer` are passed over.

    image_root: folder that relative image paths start from; None: the file's own. limit: only the first so many.
    Raises UserError naming file and line: missing file, broken JSON, missing or mistyped field, an empty text, a text
    with the token of a picture, a missing image, no questions at all.
    """
    path = Path(source)
    root = path.parent if image_root is None else Path(image_root)
    records = [_record(line, root) for line in read_json_lines(path)]
    if not records:
        raise UserError(f"the questions '{path}' are empty; at least one line with {', '.join(FIELDS)} is needed.")
    return records[:limit]


def _record(line: JsonLine, root: Path) -> QuestionRecord:
    line.refuse_slips(FIELDS)
    texts = {}
    for name in FIELDS:
        text = line.get(name, str, "the path of a picture" if name == "image" else "a text")
        if text is None:
            raise UserError(f"{line.where}: the field '{name}' is missing; a question has {', '.join(FIELDS)}.")
        if not text.strip():
            raise UserError(f"{line.where}: '{name}' is empty.")
        for token in RESERVED if name != "image" else ():
            if token in text:
                raise UserError(f"{line.where}: '{name}' contains {token}, which stands for a picture; leave it out.")
        texts[name] = text
    image = root / texts["image"]
    check_picture(image, f"{line.where}: the image '{image}'")
    return QuestionRecord(image, texts["question"], texts["answer"])
