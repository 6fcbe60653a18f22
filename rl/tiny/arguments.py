"""What `uniar-rl prompts` takes. Loads no library."""

import argparse

from rewards.geneval.request import SKILLS
from uniar.reading.files import user_path

FILES = """\
files, for SPLIT in train and held_out, which share no combination of shapes, colours and places:
  SPLIT.jsonl            captions in GenEval's six skills, as many of each, with metadata for the reward
                         `rl.tiny.shapes:Shapes`
  questions_SPLIT.jsonl  questions about pictures and their answers, for episodes that answer, and for a recipe's
                         `understanding`
  edits_SPLIT.jsonl      instructions to edit a picture, with metadata of what is asked for, and its picture (`target`)
  images/                the pictures

examples:
  uniar-rl prompts --output data/shapes
  uniar-rl prompts --output data/colors --skills colors color_attr --questions 0 --edits 0
"""


def prompts(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = FILES, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", type=user_path, required=True, metavar="FOLDER", help="new folder to write")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other prompts; default: %(default)s")
    for name, default, what in (
        ("--train", 2000, "captions to train on"),
        ("--held-out", 480, "captions to evaluate with"),
        ("--questions", 480, "questions of each split"),
        ("--edits", 480, "edits of each split"),
    ):
        parser.add_argument(name, type=int, default=default, metavar="N", help=f"{what}; default: %(default)s")
    parser.add_argument(
        "--skills", nargs="+", default=list(SKILLS), metavar="SKILL", help=f"of the captions; all: {', '.join(SKILLS)}"
    )
