"""`uniar-rl generate`: prompts → images."""

import argparse

from uniar.commands.drawing import add_drawing_options, check_options, draw_requests
from uniar.commands.loading import Checkpoint, add_model_options
from uniar.commands.requests import add_prompt_options, drawing_requests, numbered_as_uniar, read_questions

EXAMPLES = """\
examples:
  uniar-rl generate --model CHECKPOINT --prompt "a red circle" --output circle.png
  uniar-rl generate --model CHECKPOINT --prompts prompts.jsonl --images-per-prompt 4 --output drawn/
  uniar-rl generate --model assets/uniar-tiny --prompt "a photo of a red circle" --output circle.png

A line of the JSONL file may have a height and a width of its own. Run the same command again to go on with a folder.
Several GPUs share the work, and draw the same images: torchrun --nproc_per_node 8 -m rl.cli generate …
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    add_prompt_options(parser, "what to draw", pictures=False)
    parser.add_argument("--height", type=int, help="in pixels; default: what the checkpoint was made for")
    parser.add_argument("--width", type=int, help="in pixels; see --height")
    add_drawing_options(parser)
    add_model_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Raises UserError for bad input."""
    check_options(arguments)
    questions = read_questions(arguments, ())
    if arguments.layout == "uniar":
        questions = numbered_as_uniar(questions)
    checkpoint = Checkpoint.find(arguments, decoder=True)
    requests = drawing_requests(questions, arguments, *checkpoint.sizes())
    draw_requests(arguments, checkpoint, requests)
