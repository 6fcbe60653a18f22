"""`uniar-rl generate`: prompts → images."""

import argparse

from uniar.commands.drawing import check_options, draw_requests
from uniar.commands.loading import find_checkpoint
from uniar.commands.requests import drawing_requests, numbered_as_uniar, read_questions


def run(arguments: argparse.Namespace) -> None:
    """Raises UserError for bad input."""
    check_options(arguments)
    questions = read_questions(arguments, ())
    if arguments.layout == "uniar":
        questions = numbered_as_uniar(questions)
    checkpoint = find_checkpoint(arguments, decoder=True)
    requests = drawing_requests(questions, arguments, *checkpoint.sizes())
    draw_requests(arguments, checkpoint, requests)
