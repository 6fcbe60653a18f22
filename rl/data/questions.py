"""Questions about pictures with their answers: a JSONL file of objects with `image`, `question` and `answer`."""

from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from uniar.errors import UserError
from uniar.reading.json_lines import JsonLine, read_json_lines
from uniar.reading.pictures import check_picture, load_picture, picture_name, picture_path
from uniar.reading.prompt_files import read_all
from uniar.reading.prompt_text import check_text

FIELDS = ("image", "question", "answer")


@dataclass(frozen=True)
class QuestionRecord:
    """A question about a picture, and the answer that is right."""

    image: Path
    question: str
    answer: str
    where: str = field(default="", compare=False)
    """file and line"""

    def load_image(self) -> Image.Image:
        """The picture in RGB. Raises UserError if it cannot be read."""
        return load_picture(self.image)


def load_questions(
    source: str | Path, image_root: str | Path | None = None, limit: int | None = None
) -> list[QuestionRecord]:
    """The questions of a JSONL file, in its order; fields other than `image`, `question`, `answer` are passed over.

    image_root: folder that relative image paths start from; None: the file's own. limit: only the first so many.
    Raises UserError naming file and line: missing file, broken JSON, missing or mistyped field, a text that
    `check_text` refuses, an image that cannot be read, no questions at all.
    """
    path = Path(source)
    root = path.parent if image_root is None else Path(image_root)
    records = read_all(read_json_lines(path), lambda line: _record(line, root))
    if not records:
        raise UserError(f"the questions '{path}' are empty; at least one line with {', '.join(FIELDS)} is needed.")
    return records[:limit]


def _record(line: JsonLine, root: Path) -> QuestionRecord:
    line.refuse_slips(FIELDS)
    texts = {}
    for name in FIELDS:
        text = line.get(name, str, "the path of a picture" if name == "image" else "a string")
        if text is None:
            raise UserError(f"{line.where}: the field '{name}' is missing; a question has {', '.join(FIELDS)}.")
        check_text(text, f"{line.where}: '{name}'")
        texts[name] = text
    image = picture_path(texts["image"], root, line.where)
    check_picture(image, f"{line.where}: {picture_name(image)}")
    return QuestionRecord(Path(image), texts["question"], texts["answer"], line.where)
