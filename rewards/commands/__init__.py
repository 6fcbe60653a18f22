"""The commands under `uniar-rl rewards`.

Each command's module has `add_arguments(parser)` and `run(arguments)`; `run` raises UserError for bad input.
"""

import argparse
from importlib import import_module

COMMANDS = {
    "list": ("rewards.commands.listing", "the rewards there are, what each needs and whether it is there"),
    "describe": ("rewards.commands.description", "what a reward measures, and its parameters"),
    "score": ("rewards.commands.scoring", "score pictures with a reward"),
    "check": ("rewards.commands.checking", "try a reward of your own against the contract"),
    "serve": ("rewards.commands.serving", "serve rewards to training runs on other machines or environments"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    subparsers = parser.add_subparsers(dest="reward_command", required=True, metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        import_module(module).add_arguments(subparser)


def run(arguments: argparse.Namespace) -> None:
    """Raises UserError for bad input."""
    module, _ = COMMANDS[arguments.reward_command]
    import_module(module).run(arguments)
