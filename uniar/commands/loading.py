"""Which checkpoint a command runs on, and numbers that it takes."""

import argparse
import math
import sys

from uniar.errors import UserError
from uniar.placed_checkpoint import PlacedCheckpoint
from uniar.placement import choose_device
from uniar.processes import Processes


def find_checkpoint(arguments: argparse.Namespace, *, decoder: bool) -> PlacedCheckpoint:
    """Raises UserError as `PlacedCheckpoint.find` does, and for an unusable device."""
    alone = Processes.here().rank == 0
    return PlacedCheckpoint.find(
        arguments.model,
        choose_device(arguments.device),
        arguments.dtype,
        arguments.attention,
        decoder=decoder,
        show_progress=alone and sys.stderr.isatty() and not arguments.quiet,  # bars are for a terminal
    )


def check_number(option: str, value: float, lowest: float, *, above: bool = False) -> None:
    """Raises UserError unless `value` is finite and at least `lowest` (with `above`: more than it)."""
    if not math.isfinite(value) or value < lowest or (above and value == lowest):
        finite = "finite, " if value == math.inf else ""
        raise UserError(
            f"{option} is {value}; it must be {finite}{'above ' if above else ''}{lowest}{'' if above else ' or more'}."
        )
