"""Which processes train and which decode, where a recipe sets `decode.processes`.

Of the processes that a launcher starts on a machine, the last ones decode and score for the others of that machine.
They are not part of training: the others are renumbered, so that the Trainer, DDP and DeepSpeed never hear of them.
"""

import hashlib
import os
import signal
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rewards import Reward
from rl.config.sections import Recipe
from uniar.errors import UserError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""that end a run early, saved; processes that decode leave them to those that train"""

LONGEST_PATH = 103
"""bytes of a socket's path; 107 on Linux, 103 on other systems"""


@dataclass(frozen=True)
class Role:
    """This process's part on its machine."""

    decodes: bool
    decoder: int
    """which decoding process of the machine it is, or is served by"""
    clients: int
    """how many training processes that one serves"""
    machine: int = 0
    """which machine of the run this is; tests and small runs have several on one"""

    @property
    def socket(self) -> Path:
        """Where the two meet: a socket that only this user can open, of this run alone. Raises UserError."""
        folder = Path(tempfile.gettempdir()) / f"uniar-rl-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.stat(follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise UserError(f"{folder} is not a folder of yours alone (mode 700); remove it, or set TMPDIR.")
        launch = "|".join(
            os.environ.get(name, "")
            for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
        )
        path = folder / f"{hashlib.sha256(launch.encode()).hexdigest()[:12]}-{self.machine}-{self.decoder}.sock"
        if len(os.fsencode(path)) > LONGEST_PATH:
            raise UserError(
                f"{path} is {len(os.fsencode(path))} bytes long, and the path of a socket at most {LONGEST_PATH}; set "
                "TMPDIR to a shorter one, such as /tmp."
            )
        return path


def take_role(decoders: int) -> Role | None:
    """This process's role where the last `decoders` processes of each machine decode; None where none does.

    Changes RANK, WORLD_SIZE and the local counts in the environment to those of the processes that train. Called before
    anything else reads them. Raises UserError where the launcher has not started enough processes.
    """
    if decoders == 0:
        return None
    local_size_key = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in os.environ else "LOCAL_SIZE"  # torchrun, deepspeed
    local_size, size = int(os.environ.get(local_size_key, 1)), int(os.environ.get("WORLD_SIZE", 1))
    if local_size < 2 * decoders:  # each that trains asks one of them
        raise UserError(
            f"decode.processes is {decoders}, and the launcher has started {local_size} "
            f"process{'es' * (local_size != 1)} on this machine; as many must train, so start {2 * decoders} or more."
        )
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if size % local_size or rank % local_size != local_rank:
        raise UserError(
            f"decode.processes is {decoders}, which needs equally many processes on each machine; found {size} "
            f"processes, {local_size} of them here."
        )
    training, machine = local_size - decoders, rank // local_size
    os.environ["WORLD_SIZE"] = str(size // local_size * training)
    os.environ[local_size_key] = str(training)
    if local_rank >= training:
        decoder = local_rank - training
        return Role(True, decoder, len(range(decoder, training, decoders)), machine)
    os.environ["RANK"] = str(machine * training + local_rank)
    decoder = local_rank % decoders
    return Role(False, decoder, len(range(decoder, training, decoders)), machine)


def check_rewards(recipe: Recipe, rewards: Sequence[Reward]) -> None:
    """Raises UserError for rewards that look at the policy where other processes score."""
    looking = [reward.name for reward in rewards if reward.wants_policy]
    if recipe.decode.processes and looking:
        raise UserError(
            f"{recipe.source}: decode.processes is {recipe.decode.processes}, but the reward {looking[0]} looks at the "
            "policy, which a decoding process does not have; set decode.processes to 0."
        )
