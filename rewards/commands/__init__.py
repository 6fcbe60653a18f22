"""The commands under `uniar-rl rewards`.

`arguments` says what they take; each command's module has `run(arguments)`, which raises UserError for bad input.
"""

import argparse
from importlib import import_module

COMMANDS = {
    "list": ("rewards.commands.listing", "the rewards there are, what each needs and whether it is there"),
    "describe": ("rewards.commands.description", "what a reward measures, and its parameters"),
    "score": ("rewards.commands.scoring", "score pictures with a reward"),
    "new": ("rewards.commands.scaffold", "write a reward of your own to begin with: a plug-in file and its test"),
    "check": ("rewards.commands.checking", "try a reward of your own against the contract"),
    "serve": ("rewards.commands.serving", "serve rewards to training runs on other machines or environments"),
}


def run(arguments: argparse.Namespace) -> None:
    """Raises UserError for bad input."""
    module, _ = COMMANDS[arguments.reward_command]
    import_module(module).run(arguments)
