"""Gradients of an update's micro-batches are added up in float32 under ZeRO-2 and ZeRO-3, and `plan` counts them so."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rl.config.deepspeed_file import accumulates_in_float32, filled_by_trainer
from rl.plan.model_states import ZeroSettings
from uniar.reading.files import read_object

CONFIGS = Path(__file__).parents[2] / "configs" / "deepspeed"
TWO = {"zero_optimization": {"stage": 2}}


@pytest.mark.parametrize(
    ("settings", "float32"),
    [
        (TWO, True),
        (read_object(CONFIGS / "zero2.json"), True),
        ({**TWO, "data_types": {}}, True),
        ({**TWO, "data_types": None}, True),
        ({**TWO, "data_types": {"grad_accum_dtype": "fp32"}}, True),
        ({**TWO, "data_types": {"grad_accum_dtype": "bf16"}}, False),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}}}, True),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, False),
        ({"zero_optimization": {"stage": 1}}, False),
        ({"zero_optimization": {}}, False),
        ({}, False),
        (None, False),
        (read_object(CONFIGS / "zero3.json"), True),
        (read_object(CONFIGS / "zero3_offload.json"), False),
    ],
)
def test_which_settings_add_up_in_float32(settings, float32):
    assert accumulates_in_float32(settings) is float32
    assert ZeroSettings.of(settings, 64).float32_gradients is float32
    if settings is None:
        return
    told, said = filled_by_trainer(settings).get("data_types"), settings.get("data_types")
    assert told == ({"grad_accum_dtype": "fp32"} if float32 else said)


def test_deepspeed_reads_it():
    from deepspeed.runtime.config import DeepSpeedConfig

    sizes = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "gradient_clipping": 1.0}
    told = {**filled_by_trainer(TWO), **sizes, "bf16": {"enabled": True}}
    assert DeepSpeedConfig(told).grad_accum_dtype == "fp32"


SUM = """
import json, os, sys
import torch
os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[2])
import deepspeed
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
deepspeed.init_distributed(dist_backend="gloo")
model = torch.nn.Linear(4, 1, bias=False).bfloat16()
torch.nn.init.zeros_(model.weight)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
engine, optimizer, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=json.loads(sys.argv[1]))
for size in [1.0] + [2.0**-9] * 256:
    engine.backward(engine(torch.full((1, 4), size, dtype=torch.bfloat16)).sum())
    engine.step()
three = hasattr(optimizer, "fp32_partitioned_groups_flat")
[master] = optimizer.fp32_partitioned_groups_flat if three else optimizer.single_partition_of_fp32_groups
print("moved", -master[0].item() * 257)
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
@pytest.mark.parametrize(("said", "moved"), [({}, 1.5), ({"data_types": {"grad_accum_dtype": "bf16"}}, 1.0)])
def test_small_gradients_are_not_rounded_away(engine, said, moved):
    """A gradient of 1 and 256 of 1/512: in bfloat16 each of these is rounded away."""
    settings = filled_by_trainer({**read_object(CONFIGS / f"{engine}.json"), **said}) | {
        "train_micro_batch_size_per_gpu": 1,
        "train_batch_size": 257,
        "gradient_accumulation_steps": 257,
        "gradient_clipping": 0.0,
        "bf16": {"enabled": True},
        "zero_allow_untested_optimizer": True,
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SUM, json.dumps(settings), port],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(re.search(r"moved (\S+)", done.stdout)[1]) == pytest.approx(moved, rel=0.02)
