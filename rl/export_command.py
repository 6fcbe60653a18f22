"""`uniar-rl export`: a training checkpoint → a self-contained folder."""

import argparse
from pathlib import Path

from rl.export import export_checkpoint
from rl.policy_model import checkpoint_of
from rl.recipe import load_recipe
from uniar.checkpoint import resolve_checkpoint
from uniar.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="a run's checkpoint-N folder")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--source", help="checkpoint that training started from; default: the one the run's config.yaml names"
    )


def run(arguments: argparse.Namespace) -> None:
    if not arguments.checkpoint.is_dir():
        raise UserError(f"{arguments.checkpoint} is no folder; name a run's checkpoint-N folder.")
    if arguments.source:
        source = resolve_checkpoint(arguments.source)
    else:
        config = arguments.checkpoint.parent / "config.yaml"
        if not config.is_file():
            raise UserError(f"{config} is not there to say where training started; name that checkpoint with --source.")
        source = checkpoint_of(load_recipe(config).model)
    export_checkpoint(arguments.checkpoint, source, arguments.output)
    print(f"exported {arguments.checkpoint} to {arguments.output}")
