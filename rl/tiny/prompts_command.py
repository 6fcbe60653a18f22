"""`uniar-rl prompts`: prompts, questions and edits of UniAR-Tiny's world as JSONL files and pictures.

The lines are those of `rl.data.prompts`, so the files are prompts for training and evaluation, for `uniar-rl generate`
and `edit`; those of questions are for episodes that answer, and for a recipe's `understanding.questions`. What a file
holds depends on the seed, its name and its own number of lines alone.
"""

import argparse
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from rewards.geneval.request import SKILLS
from rl.tiny.captions import drawing
from rl.tiny.edits import KINDS, edit
from rl.tiny.questions import question
from rl.tiny.scenes import written_scene
from rl.tiny.splits import SPLITS, Split
from rl.tiny.world import Scene, render
from uniar.errors import UserError

PICTURES = "images"
TRIES = 500  # in a row without a new text, after which there are taken to be no more


Line = dict[str, Any]


def run(arguments: argparse.Namespace) -> None:
    """Raises UserError for a folder that cannot be written or is not empty, and for numbers and skills that are not
    valid."""
    numbers = {"train": arguments.train, "held_out": arguments.held_out}
    for name, number in (*numbers.items(), ("questions", arguments.questions), ("edits", arguments.edits)):
        if number < 0:
            raise UserError(f"--{name.replace('_', '-')} is {number}; it cannot be negative.")
    for skill in arguments.skills:
        if skill not in SKILLS:
            raise UserError(f"--skills has {skill!r}; known: {', '.join(SKILLS)}.")
    output, seed, skills = arguments.output, arguments.seed, list(dict.fromkeys(arguments.skills))
    drawings = {split: list(drawing_lines(seed, split, numbers[split], skills)) for split in SPLITS}  # may be too many
    _make_folder(output)
    for split in SPLITS:
        files = {
            f"{split}.jsonl": drawings[split],
            f"questions_{split}.jsonl": question_lines(seed, split, arguments.questions, output),
            f"edits_{split}.jsonl": edit_lines(seed, split, arguments.edits, output),
        }
        for name, lines in files.items():
            written = _write(output / name, lines)
            if written:
                print(f"{output / name}: {written} lines")


def drawing_lines(seed: int, split: Split, number: int, skills: Sequence[str]) -> Iterator[Line]:
    """Captions with different texts, the skills in turn. Raises UserError where there are not so many."""
    rng = random.Random(f"{seed} drawings {split}")
    seen: set[str] = set()
    for index in range(number):
        skill = skills[index % len(skills)]
        for tries in count():
            drawn = drawing(rng, split, skill)
            if drawn.prompt not in seen:
                break
            if tries == TRIES:
                raise UserError(
                    f"{number} captions of {', '.join(skills)} are more than there are different ones for {split}; "
                    f"ask for at most {index}."
                )
        seen.add(drawn.prompt)
        yield {"id": f"{split}-{index:05d}", "prompt": drawn.prompt, "task": "draw", "metadata": drawn.metadata}


def question_lines(seed: int, split: Split, number: int, folder: Path) -> Iterator[Line]:
    """Questions; writes their pictures."""
    rng = random.Random(f"{seed} questions {split}")
    for index in range(number):
        asked = question(rng, split)
        name = f"question-{split}-{index:05d}"
        yield {
            "id": name,
            "image": _picture(asked.scene, folder, name),
            "task": "answer",
            "prompt": asked.question,
            "question": asked.question,
            "answer": asked.answer,
            "kind": asked.kind,
        }


def edit_lines(seed: int, split: Split, number: int, folder: Path) -> Iterator[Line]:
    """Edits, the kinds in turn; writes their pictures."""
    rng = random.Random(f"{seed} edits {split}")
    kinds = tuple(KINDS)
    for index in range(number):
        made = edit(rng, split, kinds[index % len(kinds)])
        name = f"edit-{split}-{index:05d}"
        target = _picture(made.target, folder, f"{name}-target")
        yield {
            "id": name,
            "prompt": made.instruction,
            "task": "edit",
            "image": _picture(made.source, folder, name),
            "metadata": {**made.metadata, "target": target, "scene": written_scene(made.target)},
        }


def _picture(scene: Scene, folder: Path, name: str) -> str:
    """Writes the picture of a scene; returns its path from the folder."""
    file = f"{PICTURES}/{name}.png"
    (folder / PICTURES).mkdir(exist_ok=True)
    render(scene).save(folder / file)
    return file


def _write(path: Path, lines: Iterable[Line]) -> int:
    """The number of lines; no file for none."""
    texts = [json.dumps(line) + "\n" for line in lines]
    if texts:
        path.write_text("".join(texts), encoding="utf-8")
    return len(texts)


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        occupied = any(output.iterdir())
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}.") from error
    if occupied:
        raise UserError(f"--output {output} is not empty; name a new folder.")
