"""`uniar-rl chat`: questions about pictures → answers."""

import argparse
import sys
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from uniar.commands.answers import AnswerSettings, answer_record, append_answer, read_answered
from uniar.commands.conversation import Conversation
from uniar.commands.loading import check_number, find_checkpoint
from uniar.commands.requests import Question, read_questions
from uniar.errors import UserError
from uniar.placed_checkpoint import PlacedCheckpoint
from uniar.processes import Processes
from uniar.reading.files import require_writable
from uniar.reading.pictures import load_picture
from uniar.reading.prompt_text import check_text, reserved_tokens
from uniar.seeds import seed_of


def run(arguments: argparse.Namespace) -> None:
    """Raises UserError for bad input."""
    if Processes.here().count > 1:
        raise UserError("chat runs in one process, not in several; start it without torchrun or accelerate launch.")
    check_number("--max-new-tokens", arguments.max_new_tokens, 1)
    check_number("--temperature", arguments.temperature, 0)
    if (arguments.prompts is None) != (arguments.output is None):
        raise UserError("--prompts and --output go together: a file of questions, and the file for their answers.")
    if arguments.output is not None:
        require_writable(arguments.output.parent)
    given_pictures = tuple(arguments.image)
    asked = arguments.prompt is not None or arguments.prompts is not None
    questions = read_questions(arguments, given_pictures) if asked else []
    pictures = [load_picture(path) for path in given_pictures]
    checkpoint = find_checkpoint(arguments, decoder=False)
    checkpoint.config()
    if arguments.prompts is not None:
        _answer_file(arguments, checkpoint, questions)
        return
    model, processor = checkpoint.load_model(), checkpoint.load_processor()
    conversation = Conversation(model, processor, arguments.max_new_tokens, arguments.temperature, pictures)
    lines = [question.prompt for question in questions] or _typed_lines(reserved_tokens(processor))
    for number, prompt in enumerate(lines):
        conversation.ask(prompt, seed_of("chat", arguments.seed, number), stream=True)


def _typed_lines(tokens: Sequence[str]) -> Iterator[str]:
    """Lines of the standard input that say something; a text that no prompt can hold, as one of `tokens`, is answered
    with the reason."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            return
        if not line.strip():
            continue
        try:
            check_text(line, "the question", tokens)
        except UserError as error:
            print(error, file=sys.stderr)
            continue
        yield line


def _answer_file(arguments: argparse.Namespace, checkpoint: PlacedCheckpoint, questions: Sequence[Question]) -> None:
    """Answers each line on its own, and appends to the output what is not answered there yet."""
    settings = AnswerSettings(
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        seed=arguments.seed,
        dtype=checkpoint.dtype,
        weights=checkpoint.fingerprint(),
    )
    records = [answer_record(question, settings, checkpoint.name) for question in questions]
    answered = read_answered(arguments.output, records)
    missing = [pair for pair in zip(questions, records, strict=True) if pair[1]["id"] not in answered]
    if missing:
        model, processor = checkpoint.load_model(), checkpoint.load_processor()
    with tqdm(
        total=len(questions), initial=len(answered), desc="answers", disable=not checkpoint.show_progress
    ) as progress:
        for question, record in missing:
            pictures = [load_picture(path) for path in question.pictures]
            conversation = Conversation(model, processor, arguments.max_new_tokens, arguments.temperature, pictures)
            seed = seed_of("chat", arguments.seed, question.name)
            append_answer(arguments.output, record, conversation.ask(question.prompt, seed))
            progress.update()
    if not arguments.quiet:
        already = f" ({len(answered)} already there)" if answered else ""
        print(f"{len(questions)} answer{'s' * (len(questions) > 1)} in {arguments.output}{already}")
