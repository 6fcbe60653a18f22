"""Decoding and scoring in processes of their own: who does what, what they say to each other, how they end."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Listener, Pipe

import psutil
import pytest
import torch
from support.training_runs import ROOT, changed, deepspeed, launch, logged, run, small_recipe
from support.warm_process import run_warm

from rl.config.recipe import recipe_from_mapping
from rl.distributed.process_roles import SIGNALS, Role, take_role
from rl.run.folder import RunFolder
from rl.scoring.decoder_messages import receive, send
from rl.scoring.decoder_process import DecoderProcess
from rl.scoring.scorer import DecoderConnection
from rl.train import train
from uniar.errors import RunError, UserError

EACH = {"decode": {"processes": 1}}


@pytest.fixture
def settings(nano_checkpoint, tmp_path) -> dict:
    recipe = small_recipe(nano_checkpoint, tmp_path)
    (tmp_path / "held_out.jsonl").write_text('{"prompt": "a red circle"}\n{"prompt": "a blue circle"}\n')
    held_out = {"prompts": str(tmp_path / "held_out.jsonl"), "at_start": True, "samples_per_prompt": 2}
    eval_rewards = [{"use": "color", "color": "blue"}, "compressibility"]
    return changed(recipe, evaluate=held_out, eval_rewards=eval_rewards)


def test_same_scores_with_and_without(settings, tmp_path):
    settings = changed(settings, records={"groups": 1})  # of two, so that not all images are sent
    here = run(settings, output_dir=str(tmp_path / "here"))
    there, output = launch(settings, 2, **EACH, output_dir=str(tmp_path / "there"))
    for key in (
        "reward",
        "rewards/color/std",
        "rewards/color/failed",
        "eval_reward",
        "eval_color",
        "loss",
        "grad_norm",
    ):
        assert logged(there, key) == logged(here, key), key
    for name in ("evaluations/step-000003.parquet", "groups/step-000001.parquet"):
        assert (there.path / name).read_bytes() == (here.path / name).read_bytes()
    assert there.details.exists() == here.details.exists()
    assert (there.samples / "step-000003.png").read_bytes() == (here.samples / "step-000003.png").read_bytes()
    assert output.strip().splitlines()[-1].startswith("held-out reward: ")


def test_a_reward_that_fails_there_ends_the_run_with_its_error_first(settings, tmp_path):
    (tmp_path / "my_rewards.py").write_text(
        "def broken(prompts, images, **columns):\n    raise ValueError('the judge is out')\n"
    )
    rewards = [{"use": f"{tmp_path}/my_rewards.py:broken", "retries": 0}]
    _, output = launch(settings, 2, **EACH, rewards=rewards, eval_rewards=["color"], fails=True)
    cause, consequence = output.index("the judge is out"), output.index("the decoding process of this one has ended")
    assert cause < consequence


@pytest.mark.slow
def test_a_decoding_process_that_is_killed_ends_the_run(settings, tmp_path):
    recipe = changed(settings, **EACH, trainer={"max_steps": 10_000, "save_strategy": "no"})
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(recipe))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    launched = subprocess.Popen(
        [*launcher, "-m", "rl.train", str(path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not any(line["step"] >= 2 for line in RunFolder(recipe["output_dir"]).read()):
        assert launched.poll() is None, launched.communicate()[0][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    workers = psutil.Process(launched.pid).children()
    (decoding,) = [worker for worker in workers if worker.environ()["LOCAL_RANK"] == "1"]
    decoding.send_signal(signal.SIGKILL)
    output, _ = launched.communicate(timeout=120)
    assert launched.returncode != 0
    assert "exitcode  : -9" in output


@pytest.mark.slow
@pytest.mark.parametrize("engine", [None, "zero3"])
@pytest.mark.parametrize("sections", [{}, {"rollout": {"dynamic_sampling": {}}}], ids=["plain", "dynamic"])
def test_several_processes_share_one(settings, tmp_path, sections, engine):
    here = run(settings, **sections, output_dir=str(tmp_path / "here"))
    trainer = {"per_device_train_batch_size": 4, "deepspeed": engine and deepspeed(engine)}
    there, _ = launch(settings, 3, **EACH, **sections, trainer=trainer, output_dir=str(tmp_path / "there"))
    require_same(there, here)


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(settings, tmp_path):
    whole, _ = launch(settings, 2, **EACH, output_dir=str(tmp_path / "whole"))
    trainer = {"max_steps": 2, "save_steps": 1}
    launch(settings, 2, **EACH, trainer=trainer, evaluate={"at_end": False}, output_dir=str(tmp_path / "parts"))
    parts, _ = launch(settings, 2, "--resume", **EACH, output_dir=str(tmp_path / "parts"))
    for key in ("reward", "eval_reward", "loss", "grad_norm"):
        assert logged(parts, key) == logged(whole, key), key


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["deepspeed", "accelerate"])
def test_other_launchers(settings, tmp_path, launcher):
    here = run(settings, output_dir=str(tmp_path / "here"))
    trainer = {"per_device_train_batch_size": 4, "deepspeed": deepspeed("zero2")}
    recipe = tmp_path / "there.yaml"
    recipe.write_text(json.dumps(changed(settings, **EACH, trainer=trainer, output_dir=str(tmp_path / "there"))))
    if launcher == "deepspeed":
        words = ["-m", "deepspeed.launcher.runner", "--num_accelerators", "3", "--module", "rl.train", str(recipe)]
    else:
        # torchvision may not import beside a CPU torch unless uniar comes first; `accelerate launch` imports it.
        start = "import uniar; from accelerate.commands.accelerate_cli import main; main()"
        words = ["-c", start, "launch", "--multi_gpu", "--num_processes", "3", "-m", "rl.train", str(recipe)]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    require_same(RunFolder(tmp_path / "there"), here)


def require_same(found: RunFolder, expected: RunFolder) -> None:
    for key in ("reward", "eval_reward", "grad_norm"):
        assert logged(found, key) == pytest.approx(logged(expected, key), rel=1e-3, abs=1e-6), key


def test_a_reward_that_looks_at_the_policy_is_refused(settings, monkeypatch):
    environment(monkeypatch, 0, 0, 2, 2)
    rewards = [{"use": "self_vqa", "judge": "policy"}]
    with pytest.raises(UserError, match=r"decode\.processes is 1, but the reward self_vqa looks at the policy"):
        train(recipe_from_mapping(changed(settings, **EACH, rewards=rewards)))


def environment(monkeypatch, rank: int, local_rank: int, size: int, local_size: int) -> None:
    values = {"RANK": rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": local_size}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


def test_roles_on_two_machines(monkeypatch):
    trained, decoding, sockets = [], [], set()
    for rank in range(10):
        environment(monkeypatch, rank, rank % 5, 10, 5)
        role = take_role(2)
        assert (os.environ["WORLD_SIZE"], os.environ["LOCAL_WORLD_SIZE"]) == ("6", "3")
        if role.decodes:
            decoding.append((rank, role.decoder, role.clients))
            sockets.add(role.socket)
        else:
            trained.append((rank, int(os.environ["RANK"]), role.decoder))
    assert trained == [(0, 0, 0), (1, 1, 1), (2, 2, 0), (5, 3, 0), (6, 4, 1), (7, 5, 0)]
    assert decoding == [(3, 0, 2), (4, 1, 1), (8, 0, 2), (9, 1, 1)]
    assert len(sockets) == 4  # also where both are this machine, as in tests of several nodes


def test_without_such_processes_nothing_changes(monkeypatch):
    environment(monkeypatch, 1, 1, 2, 2)
    assert take_role(0) is None
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("1", "2")


def test_too_few_processes(monkeypatch, settings):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    with pytest.raises(UserError, match=r"decode\.processes is 1, and the launcher has started 1 process on this"):
        train(recipe_from_mapping(changed(settings, **EACH)))
    environment(monkeypatch, 0, 0, 3, 3)
    with pytest.raises(UserError, match="3 processes on this machine; as many must train, so start 4 or more"):
        take_role(2)
    environment(monkeypatch, 4, 1, 5, 3)
    with pytest.raises(UserError, match="needs equally many processes on each machine; found 5 processes, 3 of them"):
        take_role(1)


def test_the_socket_is_this_user_s_and_this_run_s(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", ".")  # tmp_path itself can be too long for a socket
    monkeypatch.setenv("MASTER_PORT", "1")
    role = Role(decodes=True, decoder=0, clients=1)
    first = role.socket
    assert first.parent.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("MASTER_PORT", "2")
    assert role.socket != first != Role(True, 1, 1).socket
    first.parent.chmod(0o755)
    with pytest.raises(UserError, match=r"is not a folder of yours alone \(mode 700\)"):
        role.socket  # noqa: B018
    monkeypatch.setattr("tempfile.tempdir", "long" * 20)
    (tmp_path / ("long" * 20)).mkdir()
    with pytest.raises(UserError, match="bytes long, and the path of a socket at most 103; set TMPDIR to a shorter"):
        role.socket  # noqa: B018


def test_once_its_processes_have_connected_no_other_can(tmp_path):
    """Such as those of a later run that has got the same port."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    path, gone = tmp_path / "socket", []

    def ask_nothing() -> None:
        connection, deadline = DecoderConnection(path), time.monotonic() + 30
        while path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        gone.append(not path.exists())
        connection.close()

    try:
        decoding = DecoderProcess(path, clients=1)
        threading.Thread(target=ask_nothing, daemon=True).start()
        decoding.serve(None, {})
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert gone == [True]


def test_a_process_that_fails_before_they_connect_leaves_no_socket(tmp_path):
    program = "import sys; from pathlib import Path; from rl.scoring.decoder_process import DecoderProcess; "
    program += (
        "path = Path(sys.argv[1]); decoding = DecoderProcess(path, 1); assert path.exists(); raise OSError('no disk')"
    )
    failed = run_warm("-c", program, tmp_path / "socket")
    assert "OSError: no disk" in failed.stderr
    assert not (tmp_path / "socket").exists()


def test_messages():
    here, there = Pipe()
    bits = torch.randint(0, 256, (3, 5), dtype=torch.uint8)
    send(here, {"step": 4, "details": {"why": "größer"}}, bits=bits, none=torch.empty(0, 2))
    notes, tensors = receive(there)
    assert notes == {"step": 4, "details": {"why": "größer"}}
    assert torch.equal(tensors["bits"], bits)
    assert tensors["none"].shape == (0, 2)
    os.write(here.fileno(), b"\0\0\0\x10half")
    here.close()
    with pytest.raises(ConnectionError, match="the other side has closed the connection"):
        receive(there)


def test_questions_and_answers_larger_than_the_connection_holds(tmp_path):
    """Neither side reads while it writes, so a second question must wait until the first answer has been read."""
    large = torch.zeros(8 << 20, dtype=torch.uint8)
    listening = Listener(str(tmp_path / "socket"))

    def serve() -> None:
        connection = listening.accept()
        for _ in range(2):
            notes, _ = receive(connection)
            send(connection, notes, large=large)

    threading.Thread(target=serve, daemon=True).start()
    connection = DecoderConnection(tmp_path / "socket")
    answers = [connection.ask({"number": number}, large=large) for number in (1, 2)]
    for number, answer in zip((1, 2), answers, strict=True):
        notes, tensors = answer.result(timeout=60)
        assert notes == {"number": number}
        assert len(tensors["large"]) == len(large)


def test_the_other_side_ends(tmp_path):
    listening = Listener(str(tmp_path / "socket"))
    connection = DecoderConnection(tmp_path / "socket")
    listening.accept().close()
    with pytest.raises(RunError, match="the decoding process of this one has ended"):
        connection.ask({"number": 1}).result(timeout=60)
