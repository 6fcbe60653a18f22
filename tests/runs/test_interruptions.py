"""Runs that are asked to stop, and runs that are killed: nothing that was complete is lost."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from support.kill_at import LAST
from support.run_contents import require_as_if_never_killed
from support.training_runs import ROOT, changed, deepspeed, small_recipe

from rl.checkpoint.folders import checkpoints, fault, newest_good
from rl.checkpoint.layout import SAVING
from rl.run.folder import RunFolder


@pytest.fixture
def recipe(nano_checkpoint: Path, tmp_path: Path) -> dict:
    recipe = small_recipe(nano_checkpoint, tmp_path)
    return changed({**recipe, "resume": "auto"}, trainer={"max_steps": 10, "save_steps": 1})


def start(recipe: dict, folder: Path, processes: int = 1) -> subprocess.Popen:
    path = folder.with_suffix(".yaml")
    path.write_text(json.dumps({**recipe, "output_dir": str(folder)}))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "rl.train", str(path)]
    # To a file: a pipe that nobody reads is full at some time, and the run waits for ever.
    with folder.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    process.log = folder.with_suffix(".log")
    return process


def finish(process: subprocess.Popen) -> str:
    process.wait(timeout=600)
    output = process.log.read_text()
    assert process.returncode == 0, output[-3000:]
    return output


def wait_for_step(folder: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 900
    while not any(line["step"] >= step for line in RunFolder(folder).read()):
        assert process.poll() is None, process.log.read_text()[-3000:]
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
    assert time.monotonic() - asked < 120
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
    process.wait(timeout=120)
    assert process.returncode == 130


def test_max_runtime(recipe, tmp_path):
    recipe |= {"max_runtime": 1e-6}
    output = finish(start(recipe, tmp_path / "run"))
    assert "stopped by max_runtime after update 1" in output
    assert newest_good(tmp_path / "run").name == "checkpoint-1"


# Killed --------------------------------------------------------------------------------------------------------------


def ranks(process: subprocess.Popen) -> list[psutil.Process]:
    """The training processes of a run, without its launcher."""
    launched = [child for child in psutil.Process(process.pid).children() if "rl.train" in child.cmdline()]
    return launched or [psutil.Process(process.pid)]


def wait_for_a_save(folder: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not (folder / SAVING).exists():
        assert process.poll() is None, process.log.read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.001)


def kill(process: subprocess.Popen, whom: str, moments: random.Random) -> None:
    """SIGKILL to one rank, or to all and their launcher."""
    victims = ranks(process)
    if whom == "one":
        moments.choice(victims).kill()
        asked = time.monotonic()
        process.wait(timeout=60)  # the others end by themselves
        assert process.returncode != 0
        assert time.monotonic() - asked < 60
    else:
        for victim in [psutil.Process(process.pid), *victims]:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        process.wait()
    psutil.wait_procs(victims, timeout=60)


def check_killed_run(recipe: dict, tmp_path: Path, kills: int, processes: int = 1) -> str:
    """A run that is killed at random moments, every other time in the middle of a save, and goes on each time, is the
    one that was left alone. Returns a line about it."""
    recipe["trainer"] |= {"max_steps": 3 * kills}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(recipe, whole, processes))
    moments, cut_short, complete = random.Random(kills + processes), 0, set()
    for number in range(kills):
        done = [step for step, _ in rewards(killed)]
        process = start(recipe, killed, processes)
        wait_for_step(killed, (done[-1] if done else 0) + 1, process)
        if number % 2:
            wait_for_a_save(killed, process)
            time.sleep(moments.uniform(0, 0.1))
        else:
            time.sleep(moments.uniform(0, 0.4))
        kill(process, "one" if processes > 1 and number % 4 > 1 else "all", moments)
        cut_short += (killed / SAVING).exists()
        # What had been renamed into its place is whole and still there, whatever was being written.
        found = checkpoints(killed)
        assert all(fault(checkpoint) is None for checkpoint in found)
        assert complete <= {checkpoint.name for checkpoint in found}
        complete = {checkpoint.name for checkpoint in found}
    finish(start(recipe, killed, processes))
    assert [step for step, _ in rewards(killed)] == list(range(1, 3 * kills + 1))  # no gap, no double
    assert rewards(killed) == rewards(whole)
    weights = [folder / "final" / "model.safetensors" for folder in (whole, killed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    return f"{kills} kills on {processes} processes, {cut_short} of them in the middle of a save"


def test_killed_three_times(recipe, tmp_path):
    check_killed_run(recipe, tmp_path, kills=3)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "engine"), [(1, None), (2, "zero2"), (2, "zero3")])
def test_killed_thirty_times(recipe, tmp_path, processes, engine):
    """Ten times each."""
    if engine is not None:
        recipe["trainer"] |= {"per_device_train_batch_size": 4, "deepspeed": deepspeed(engine)}
    print(check_killed_run(recipe, tmp_path, 10, processes), engine or "")


# Killed where the matrix above does not come: before the first checkpoint, and after the last ------------------------

PLACES = [
    "first evaluation",
    "first evaluation, written",
    "first line",
    "first update",
    "last update",
    "last save, sealed",
    "last save, in place",
    "last evaluation",
    "last evaluation, written",
    "export",
    "export, recorded",
    "report",
]
"""of kill_at.py"""


@pytest.fixture
def evaluated(nano_checkpoint: Path, tmp_path: Path) -> dict:
    """Three updates, a checkpoint after the second and the last, an evaluation before the first and after the last."""
    (tmp_path / "held_out.jsonl").write_text('{"prompt": "a red circle"}\n{"prompt": "a blue circle"}\n')
    return changed(
        small_recipe(nano_checkpoint, tmp_path),
        evaluate={"prompts": str(tmp_path / "held_out.jsonl"), "at_start": True, "at_end": True},
        trainer={"max_steps": LAST, "save_steps": 2},
    )


@pytest.fixture
def go_to() -> Iterator[Callable]:
    """Runs until the place, where it is killed, or to the end; returns what was printed."""
    with subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "support" / "kill_at.py")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as starter:

        def go(place: str, recipe: dict, folder: Path, processes: int = 1, *more: str) -> str:
            path, log = folder.with_suffix(".yaml"), folder.with_suffix(".log")
            path.write_text(json.dumps({**recipe, "output_dir": str(folder)}))
            log.write_text("")
            run = {"place": place, "arguments": [str(path), *more], "processes": processes, "log": str(log)}
            starter.stdin.write(json.dumps(run) + "\n")
            starter.stdin.flush()
            codes, output = json.loads(starter.stdout.readline()), log.read_text()
            expected = 0 if place == "nowhere" else -signal.SIGKILL
            ended = codes[:1] if place == "report" else codes  # then the others may have ended by themselves
            assert set(ended) == {expected}, f"{place}: {output[-3000:]}"
            return output

        yield go
        starter.stdin.close()


@pytest.mark.parametrize(
    ("place", "saving", "updates"),
    [("first update", "steps", 3), ("export", "steps", 0), ("export, recorded", "no", 0)],
)
def test_killed_before_the_first_checkpoint_and_in_the_export(evaluated, go_to, tmp_path, place, saving, updates):
    """Without checkpoints an export that was written to its end is what there is; it only lacks its name."""
    evaluated["trainer"]["save_strategy"] = saving
    whole, killed = tmp_path / "a" / "run", tmp_path / "b" / "run"
    for folder in (whole, killed):
        folder.parent.mkdir()
    go_to("nowhere", evaluated, whole)
    go_to(place, evaluated, killed)
    output = go_to("nowhere", evaluated, killed, 1, "--resume")
    assert output.count("] reward ") == updates
    require_as_if_never_killed(killed, whole)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "engine"), [(1, None), (2, "zero2")])
def test_killed_at_twelve_places(evaluated, go_to, tmp_path, processes, engine):
    """One run, killed at each of them one after the other, against one that was left alone."""
    if engine is not None:
        evaluated["trainer"] |= {"per_device_train_batch_size": 4, "deepspeed": deepspeed(engine)}
    whole, killed = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    for folder in (whole, killed):
        folder.parent.mkdir()
    go_to("nowhere", evaluated, whole, processes)
    for number, place in enumerate(PLACES):
        output = go_to(place, evaluated, killed, processes, *(["--resume"] if number else []))
        assert "[4/3]" not in output
        print(place, output.count("] reward "), "updates", flush=True)
    assert "is finished after update 3" in go_to("nowhere", evaluated, killed, processes, "--resume")
    require_as_if_never_killed(killed, whole)


@pytest.mark.parametrize("how", ["an error", pytest.param("SIGKILL", marks=pytest.mark.slow)])
def test_a_process_that_ends_takes_the_others_with_it(recipe, tmp_path, how):
    (tmp_path / "fragile.py").write_text(
        "import os\n"
        "def fragile(prompts, images, **_):\n"
        "    if os.environ['RANK'] == '1' and os.path.exists(os.environ['BREAK']):\n"
        "        raise RuntimeError('the judge has left')\n"
        "    return [0.0] * len(prompts)\n"
    )
    entry = {"use": f"{tmp_path}/fragile.py:fragile", "weight": 0, "retries": 0}
    recipe["rewards"].append(entry)
    recipe["trainer"] |= {"max_steps": 10_000, "save_steps": 10_000, "per_device_train_batch_size": 4}
    os.environ["BREAK"] = str(tmp_path / "break")
    process = start(recipe, tmp_path / "run", processes=2)
    wait_for_step(tmp_path / "run", 1, process)
    asked = time.monotonic()
    if how == "SIGKILL":
        ranks(process)[1].kill()
    else:
        (tmp_path / "break").write_text("")
    process.wait(timeout=60)
    output = process.log.read_text()
    assert process.returncode != 0
    assert time.monotonic() - asked < 60
    if how == "an error":
        cause = output.index("the judge has left")
        for later in ("Connection closed by peer", "the process of rank 1", "ChildFailedError"):
            assert later not in output[:cause]


PEERS = """
import signal, sys, time
from accelerate import PartialState
from rl.distributed.peers import Peers
PartialState(cpu=True)
signal.signal(signal.SIGTERM, lambda *_: None)
with Peers(every=0.2, grace=float(sys.argv[1])):
    print("waiting", flush=True)
    while not sys.stdin.readline():
        pass
print("left", flush=True)
PartialState().destroy_process_group()
"""


@pytest.fixture
def two_waiting() -> Iterator[list[subprocess.Popen]]:
    """Two processes of a run that wait for each other, as in a collective that does not notice an end."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PEERS, "1"],
            env={**os.environ, **shared, "PYTHONPATH": str(ROOT), "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            text=True,
            **pipes,
        )
        for rank in range(2)
    ]
    assert [process.stdout.readline() for process in processes] == ["waiting\n"] * 2
    yield processes
    for process in processes:
        process.kill()


def test_a_waiting_process_notices_the_end_of_another(two_waiting):
    first, second = two_waiting
    second.kill()  # and not reaped yet: a zombie has ended, too
    first.send_signal(signal.SIGTERM)  # of the launcher, and of no use
    assert first.wait(timeout=60) == 1
    assert f"the process of rank 1 (number {second.pid}) has ended, so rank 0 ends too" in first.stderr.read()


def test_processes_that_leave_together_end_well(two_waiting):
    for process in two_waiting:
        process.stdin.write("go on\n")
        process.stdin.flush()
    assert [process.wait(timeout=60) for process in two_waiting] == [0, 0]
    assert [process.stdout.read() for process in two_waiting] == ["left\n"] * 2
