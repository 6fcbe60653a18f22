"""The numbers of an update: each reduced as what it is, over micro-batches and processes, in one collective."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from support.training_runs import changed, logged, run, small_recipe
from support.warm_process import run_warm

from rl.algorithm.losses import METRICS, policy_loss
from rl.algorithm.metrics import UpdateMetrics

KINDS = {"mean": "mean", "max": "max", "min": "min", "sum": "sum", "here": "max", "nowhere": "mean"}
ONE = SimpleNamespace(gather=lambda rows: rows)


def row(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def test_each_is_reduced_as_what_it_is():
    update = UpdateMetrics(KINDS)
    update.add(row(mean=1.0, max=-3.0, min=-3.0, sum=-3.0), count=3)
    update.add(row(mean=5.0, max=-7.0, min=-7.0, sum=-7.0, here=0.5), count=1)
    assert update.reduce(ONE) == {"mean": 2.0, "max": -3.0, "min": -7.0, "sum": -10.0, "here": 0.5}
    update.add(row(mean=4.0))
    assert update.reduce(ONE) == {"mean": 4.0}  # nothing is left of the update before


@pytest.mark.parametrize("kind", ["mean", "max", "min", "sum"])
def test_nothing_hides_what_is_not_a_number(kind):
    update = UpdateMetrics({"value": kind})
    for value in (1.0, math.nan, 2.0):
        update.add(row(value=value))
    assert math.isnan(update.reduce(ONE)["value"])


def test_a_metric_without_a_kind_is_refused():
    with pytest.raises(KeyError, match="metrics without a kind: tv/median"):
        UpdateMetrics(METRICS).add(row(kl=0.0, **{"tv/median": 0.1}))


TWO = """
import json, sys
import torch
from accelerate import Accelerator
from torch import distributed
from rl.algorithm.metrics import UpdateMetrics

accelerator, calls = Accelerator(cpu=True), []
for name in ("all_gather", "all_gather_into_tensor", "all_reduce", "all_gather_object", "broadcast"):
    def counted(*args, _name=name, _sound=getattr(distributed, name), **kwargs):
        calls.append(_name)
        return _sound(*args, **kwargs)
    setattr(distributed, name, counted)
rank = accelerator.process_index
update = UpdateMetrics(json.loads(sys.argv[1]))
for number in range(32):
    values = {"mean": rank + number, "max": 100 * rank - number, "min": 100 * rank - number, "sum": rank + 1}
    if rank == 1 and number == 5:
        values["here"] = 0.25  # what one process has measured, once
    update.add({name: torch.tensor(float(value)) for name, value in values.items()}, count=1 + 2 * rank)
line = json.dumps([rank, update.reduce(accelerator), len(calls)]) + "\\n"
sys.stdout.write(line)  # at once: both processes write to one pipe
sys.stdout.flush()
accelerator.wait_for_everyone()
accelerator.end_training()  # else its threads may be cut off in the middle
"""


def test_two_processes_whose_numbers_differ(tmp_path):
    (tmp_path / "two.py").write_text(TWO)
    done = run_warm(tmp_path / "two.py", json.dumps(KINDS), processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = sorted(json.loads(line) for line in done.stdout.splitlines())
    # Means of 15.5 and 16.5 over samples that are 1 to 3; a mean of maxima would be 50.
    expected = {"mean": 16.25, "max": 100.0, "min": -31.0, "sum": 96.0, "here": 0.25}
    assert lines == [[rank, expected, 1] for rank in range(2)]


@pytest.fixture
def settings(nano_checkpoint: Path, tmp_path: Path) -> dict:
    """Several updates per rollout, so that ratios and distances are not those of one policy to itself."""
    return changed(
        small_recipe(nano_checkpoint, tmp_path),
        algorithm={"num_iterations": 2},
        trainer={"max_steps": 4, "save_strategy": "no", "per_device_train_batch_size": 2},
    )


@pytest.mark.parametrize(("accumulation", "logging"), [(1, 1), (4, 1), (2, 2)])
def test_what_a_run_logs(settings, monkeypatch, accumulation, logging):
    """One process logs what its micro-batches have, their mean or the largest, and asks the others once an update."""
    measured: list[dict[str, float]] = []
    gathers: list[int] = []
    gather = Accelerator.gather

    def looking(*args, **kwargs):
        loss, metrics = policy_loss(*args, **kwargs)
        measured.append({name: value.item() for name, value in metrics.items()})
        return loss, metrics

    monkeypatch.setattr("rl.trainer.turn_loss.policy_loss", looking)
    monkeypatch.setattr(Accelerator, "gather", lambda self, given: gathers.append(1) or gather(self, given))
    trainer = {"gradient_accumulation_steps": accumulation, "logging_steps": logging, "steps_per_generation": 4}
    folder = run(settings, trainer=trainer)
    assert len(measured) == 4 * accumulation
    rollouts = -(-len(measured) // 8)
    assert len(gathers) == 4 + rollouts  # of scores, one per rollout
    together = accumulation * logging
    for name, kind in METRICS.items():
        values = [micro[name] for micro in measured]
        parts = [values[start : start + together] for start in range(0, len(values), together)]
        expected = [max(part) if kind == "max" else sum(part) / together for part in parts]
        assert logged(folder, name) == (expected if together == 1 else pytest.approx(expected, rel=1e-12)), name
    assert max(logged(folder, "ratio/max")) > 1
