"""Runs that are asked to stop, and runs that are killed: nothing that was complete is lost."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rl.checkpoints import checkpoints, fault, newest_good
from rl.run_folder import RunFolder

ROOT = Path(__file__).parent.parent
STEPS = 12


@pytest.fixture
def recipe(nano_checkpoint: Path, tmp_path: Path) -> dict:
    lines = [json.dumps({"prompt": f"a {colour} square"}) for colour in ("red", "blue", "green", "yellow")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    return {
        "model": {"path": str(nano_checkpoint), "dtype": "float32"},
        "data": {"prompts": str(tmp_path / "prompts.jsonl")},
        "rollout": {"height": 64, "width": 64, "samples_per_prompt": 4},
        "decode": {"num_inference_steps": 1},
        "rewards": [{"use": "color", "color": "red", "softness": 0.6}],
        "trainer": {"max_steps": STEPS, "save_steps": 1, "per_device_train_batch_size": 8, "learning_rate": 1e-3},
        "resume": "auto",
    }


def start(recipe: dict, folder: Path) -> subprocess.Popen:
    path = folder.with_suffix(".yaml")
    path.write_text(json.dumps({**recipe, "output_dir": str(folder)}))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "rl.train", str(path)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output[-3000:]
    return output


def wait_for_step(folder: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 90
    while not any(line["step"] >= step for line in RunFolder(folder).read()):
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def rewards(folder: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["reward"]) for line in RunFolder(folder).read() if "reward" in line]


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGTERM, id="SIGTERM"),
        pytest.param(signal.SIGUSR1, id="SIGUSR1", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, id="SIGINT", marks=pytest.mark.slow),
    ],
)
def test_asked_to_stop(recipe, tmp_path, number):
    folder = tmp_path / "run"
    recipe["trainer"] |= {"max_steps": 10_000, "save_steps": 10_000}
    process = start(recipe, folder)
    wait_for_step(folder, 2, process)
    asked = time.monotonic()
    process.send_signal(number)
    output = finish(process)
    assert time.monotonic() - asked < 30
    assert f"stopped by {number.name} after update" in output
    saved = newest_good(folder)
    assert int(saved.name.split("-")[1]) == rewards(folder)[-1][0]
    assert not (folder / "final").exists()


def test_interrupted_twice_ends_at_once(recipe, tmp_path):
    folder = tmp_path / "run"
    # A rollout that serves many updates would otherwise be finished first.
    recipe["trainer"] |= {"max_steps": 100_000, "save_strategy": "no"}
    recipe["trainer"] |= {"per_device_train_batch_size": 1, "steps_per_generation": 8}
    recipe["algorithm"] = {"num_iterations": 10_000}
    process = start(recipe, folder)
    wait_for_step(folder, 2, process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130


def test_max_runtime(recipe, tmp_path):
    recipe |= {"max_runtime": 1e-6}
    output = finish(start(recipe, tmp_path / "run"))
    assert "stopped by max_runtime after update 1" in output
    assert newest_good(tmp_path / "run").name == "checkpoint-1"


def killed_and_resumed(recipe: dict, folder: Path, kills: int, seed: int) -> None:
    """Kills the run at random moments after its first update, saves included, and lets it go on."""
    moments = random.Random(seed)
    for _ in range(kills):
        before = [step for step, _ in rewards(folder)]
        process = start(recipe, folder)
        wait_for_step(folder, (before[-1] if before else 0) + 1, process)
        time.sleep(moments.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        # What had been renamed into its place is whole, whatever was being written.
        assert all(fault(checkpoint) is None for checkpoint in checkpoints(folder))
        if rewards(folder)[-1][0] == STEPS:
            break
    finish(start(recipe, folder))


def check_killed_run(recipe: dict, tmp_path: Path, kills: int) -> None:
    finish(start(recipe, tmp_path / "whole"))
    killed_and_resumed(recipe, tmp_path / "killed", kills, seed=kills)
    assert rewards(tmp_path / "killed") == rewards(tmp_path / "whole")
    assert [step for step, _ in rewards(tmp_path / "killed")] == list(range(1, STEPS + 1))
    whole, killed = (tmp_path / name / "final" / "model.safetensors" for name in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()


def test_killed_three_times(recipe, tmp_path):
    check_killed_run(recipe, tmp_path, kills=3)


@pytest.mark.slow
def test_killed_thirty_times(recipe, tmp_path):
    for round_ in range(10):
        folder = tmp_path / str(round_)
        folder.mkdir()
        check_killed_run(recipe, folder, kills=3)
