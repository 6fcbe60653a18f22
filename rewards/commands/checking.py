"""`uniar-rl rewards check FILE`: the contract's checks on a plug-in."""

import argparse
import contextlib
import json
from collections.abc import Iterator

from rewards.commands.contract_checks import Finding, check_reward, made_up_samples
from rewards.commands.entries import read_parameters
from rewards.commands.pictures import batches, read_pictures
from rewards.contract.base import RewardBatch
from rewards.contract.registry import plugin_rewards
from uniar.errors import UserError
from uniar.reading.files import user_path

EXAMPLES = """\
examples:
  uniar-rl rewards check my_rewards.py
  uniar-rl rewards check my_rewards.py:Brightness darkest=0.1
  uniar-rl rewards check judge.py --samples drawn.jsonl

Without samples of your own the reward gets made-up ones: plain pictures with plain prompts, some with metadata.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument("file", help="a .py file, checked for all its rewards; file.py:Name, or any name of a reward")
    parser.add_argument("parameters", nargs="*", metavar="key=value", help="the reward's parameters, read as YAML")
    parser.add_argument(
        "--samples", type=user_path, metavar="FILE.jsonl", help="pictures, as for `rewards score`; 2 to 16"
    )
    parser.add_argument("--metadata", metavar="JSON", help="for all made-up samples, where the reward needs some")


def run(arguments: argparse.Namespace) -> None:
    """Raises UserError where a check fails, having printed them all."""
    parameters = read_parameters(arguments.parameters)
    samples = _samples(arguments)
    uses = plugin_rewards(arguments.file) if arguments.file.endswith(".py") else [arguments.file]
    wrong = 0
    for use in uses:
        print(f"{use}:")
        for finding in _checked(use, parameters, samples):
            wrong += finding.wrong
            mark = "wrong" if finding.wrong else "note " if finding.advice else "ok   "
            print(f"  {mark}  {finding.check}" + (f": {finding.said}" if finding.said else ""), flush=True)
    if wrong:
        raise UserError(f"{arguments.file}: {wrong} {'check' if wrong == 1 else 'checks'} failed.")


def _checked(use: str, parameters: dict, samples: RewardBatch) -> Iterator[Finding]:
    with contextlib.closing(check_reward(use, parameters, samples)) as findings:
        yield from findings


def _samples(arguments: argparse.Namespace) -> RewardBatch:
    if arguments.samples is None:
        try:
            metadata = json.loads(arguments.metadata) if arguments.metadata else None
        except (ValueError, RecursionError) as error:
            raise UserError(f"--metadata is not valid JSON: {error}.") from error
        if metadata is not None and not isinstance(metadata, dict):
            raise UserError(f"--metadata is {arguments.metadata!r}; a JSON object is needed.")
        return made_up_samples(metadata)
    if arguments.metadata is not None:
        raise UserError("--metadata is for made-up samples; put it into the lines of --samples.")
    pictures = read_pictures([arguments.samples], "", None, {})
    if not 2 <= len(pictures) <= 16:
        raise UserError(f"--samples has {len(pictures)} pictures; 2 to 16 are needed.")
    [batch] = batches(pictures, 16)
    return batch
