"""`uniar-rl rewards score`: pictures → a table of scores."""

import argparse
import contextlib
import math
from typing import Any

from rewards.commands.entries import build_entry, read_metadata
from rewards.commands.pictures import Picture, batches, read_pictures
from rewards.remote.wire import ScoreRequest
from rewards.remote.wire_answers import Column
from rewards.serving.batching import ScoringThread
from uniar.errors import UserError
from uniar.reading.files import append_line, writing


def run(arguments: argparse.Namespace) -> None:
    """Raises UserError for bad input, and at the end if the reward failed on a picture."""
    if arguments.batch_size < 1:
        raise UserError(f"--batch-size is {arguments.batch_size}; at least 1 is needed.")
    pictures = read_pictures(arguments.image, arguments.prompt, arguments.task, read_metadata(arguments.metadata))
    suite = build_entry(arguments)
    suite.check_columns([picture.task for picture in pictures], [picture.metadata for picture in pictures])
    [name] = suite.names
    suite.load()
    scores: list[float] = []
    failed = 0
    with contextlib.ExitStack() as stack:
        if arguments.output is not None:
            with writing(arguments.output):
                arguments.output.write_bytes(b"")
        stack.enter_context(suite.on_device())
        scoring = stack.enter_context(contextlib.closing(ScoringThread(suite, arguments.batch_size)))
        print(f"{name:>12}  picture")
        for batch in batches(pictures, arguments.batch_size):
            column = scoring.submit(ScoreRequest(batch, (name,))).result()[name]
            for row in range(len(batch)):
                picture = pictures[len(scores)]
                print(_line(picture, column, row), flush=True)
                if arguments.output is not None:
                    append_line(arguments.output, _record(name, picture, column, row))
                scores.append(column.scores[row])
            failed += len(column.failures)
    there = [score for score in scores if not math.isnan(score)]
    if len(scores) > 1 and there:
        print(f"{sum(there) / len(there):12.6g}  mean of {len(there)} scores")
    if failed:
        raise UserError(f"{name} failed on {failed} of {len(scores)} pictures.")


def _line(picture: Picture, column: Column, row: int) -> str:
    if row in column.failures:
        return f"{'failed':>12}  {picture.path}: {column.failures[row]}"
    score = column.scores[row]
    said = " ".join(str(column.details.get(row, {}).get("why", "")).split())
    shown = "-" if math.isnan(score) else f"{score:.6g}"
    return f"{shown:>12}  {picture.path}" + (f"  {said[:100]}" if said else "")


def _record(name: str, picture: Picture, column: Column, row: int) -> dict[str, Any]:
    score = column.scores[row]
    record = {"image": str(picture.path), "prompt": picture.prompt, name: None if math.isnan(score) else score}
    if row in column.failures:
        record["failed"] = column.failures[row]
    return {**record, **({"details": column.details[row]} if row in column.details else {})}
