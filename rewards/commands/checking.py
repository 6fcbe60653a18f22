"""`uniar-rl rewards check FILE`: the contract's checks on a plug-in."""

import argparse
import contextlib
from collections.abc import Iterator

from rewards.commands.contract_checks import Finding, check_reward, made_up_samples
from rewards.commands.entries import read_metadata, read_parameters
from rewards.commands.pictures import batches, read_pictures
from rewards.contract.base import RewardBatch
from rewards.contract.registry import plugin_rewards
from uniar.errors import UserError


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
        return made_up_samples(read_metadata(arguments.metadata) if arguments.metadata else None)
    if arguments.metadata is not None:
        raise UserError("--metadata is for made-up samples; put it into the lines of --samples.")
    pictures = read_pictures([arguments.samples], "", None, {})
    if not 2 <= len(pictures) <= 16:
        raise UserError(f"--samples has {len(pictures)} pictures; 2 to 16 are needed.")
    [batch] = batches(pictures, 16)
    return batch
