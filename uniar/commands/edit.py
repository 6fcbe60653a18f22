"""`uniar-rl edit`: pictures and instructions → edited images."""

import argparse

from uniar.commands.drawing import add_drawing_options, check_options, draw_requests
from uniar.commands.loading import Checkpoint, add_model_options
from uniar.commands.requests import add_prompt_options, editing_requests, numbered_as_uniar, read_questions
from uniar.reading.files import user_path

EXAMPLES = """\
examples:
  uniar-rl edit --model CHECKPOINT --image cat.png --prompt "make it night" --output night.png
  uniar-rl edit --model CHECKPOINT --prompts edits.jsonl --output edited/

A line of the JSONL file names its picture in the field image, a path from the file's folder; lines without one take
--image. Run the same command again to go on with a folder.
Several GPUs share the work, and draw the same images: torchrun --nproc_per_node 8 -m rl.cli edit …
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--image", type=user_path, help="the picture to edit")
    add_prompt_options(parser, "the edit to make", pictures=True)
    parser.add_argument(
        "--height", type=int, help="in pixels; default: the picture's shape, no larger than the checkpoint was made for"
    )
    parser.add_argument("--width", type=int, help="in pixels; see --height")
    add_drawing_options(parser)
    add_model_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Raises UserError for bad input."""
    check_options(arguments)
    questions = read_questions(arguments, () if arguments.image is None else (arguments.image,))
    if arguments.layout == "uniar":
        questions = numbered_as_uniar(questions)
    checkpoint = Checkpoint.find(arguments, decoder=True)
    requests = editing_requests(questions, arguments, *checkpoint.sizes())
    draw_requests(arguments, checkpoint, requests)
