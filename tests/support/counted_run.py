"""Trains as `python -m rl.train` does, and writes what ZeRO-3 gathers: not a test, but run by one under torchrun.

Appends a line of JSON to $GATHERS-<rank>.jsonl for each phase that the trainer times: its name, how many collectives
gathered in it, how many numbers they brought together.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rl.train import main
from rl.trainer.trainer import UniARTrainer

RECORD = Path(f"{os.environ['GATHERS']}-{os.environ['RANK']}.jsonl")
counts = {"calls": 0, "numbers": 0}


def count_gathers() -> None:
    from deepspeed.comm.torch import TorchBackend

    into_tensor, to_list = TorchBackend.all_gather_into_tensor, TorchBackend.all_gather

    def counted_into_tensor(self, output_tensor, *args, **kwargs):
        counts["calls"] += 1
        counts["numbers"] += output_tensor.numel()
        return into_tensor(self, output_tensor, *args, **kwargs)

    def counted_to_list(self, tensor_list, *args, **kwargs):
        counts["calls"] += 1
        counts["numbers"] += sum(tensor.numel() for tensor in tensor_list)
        return to_list(self, tensor_list, *args, **kwargs)

    TorchBackend.all_gather_into_tensor, TorchBackend.all_gather = counted_into_tensor, counted_to_list


phase = UniARTrainer.phase


@contextmanager
def counted_phase(self: UniARTrainer, name: str) -> Iterator[None]:
    before = dict(counts)
    with phase(self, name):
        yield
    parameters = list(self.step.scorer.decoder.parameters())
    line = {
        "phase": name,
        **{key: counts[key] - before[key] for key in counts},
        "decoder_is_sharded": any(hasattr(parameter, "ds_id") for parameter in parameters),
    }
    with RECORD.open("a") as file:
        file.write(json.dumps(line) + "\n")


UniARTrainer.phase = counted_phase
os.environ.setdefault("DS_ACCELERATOR", "cpu")
count_gathers()
sys.exit(main())
