"""Processes that share a command's work, as `torchrun` and `accelerate launch` start them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed

PATIENCE = timedelta(days=2)
"""for the slowest process; one that ends early is noticed by the launcher, which ends the others"""


@dataclass(frozen=True)
class Processes:
    """This process among those that were started together; one alone where nobody started several."""

    rank: int
    count: int

    @classmethod
    def here(cls) -> "Processes":
        if "LOCAL_RANK" not in os.environ:  # as in a pod of a cluster, where nobody started the others
            return cls(0, 1)
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Inside, `wait` waits. A process that fails leaves at once."""
        if self.count > 1:
            torch.distributed.init_process_group("gloo", timeout=PATIENCE)
        yield
        if self.count > 1:
            torch.distributed.destroy_process_group()

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            torch.distributed.barrier()
