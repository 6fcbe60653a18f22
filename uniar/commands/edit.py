"""`uniar-rl edit`: pictures and instructions → edited images."""

import argparse

from uniar.commands.drawing import check_options, draw_requests
from uniar.commands.loading import find_checkpoint
from uniar.commands.requests import editing_requests, numbered_as_uniar, read_questions


def run(arguments: argparse.Namespace) -> None:
    """Raises UserError for bad input."""
    check_options(arguments)
    questions = read_questions(arguments, () if arguments.image is None else (arguments.image,))
    if arguments.layout == "uniar":
        questions = numbered_as_uniar(questions)
    checkpoint = find_checkpoint(arguments, decoder=True)
    requests = editing_requests(questions, arguments, *checkpoint.sizes())
    draw_requests(arguments, checkpoint, requests)
