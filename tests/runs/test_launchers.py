"""launch/: what starts training on several processes, as far as one machine without a GPU can run it.

Each launcher gives the same run: the metrics and weights of one process.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.training_runs import ROOT, changed, require_same, run, small_recipe, weights

from rl.checkpoint.folders import newest_good
from rl.config.recipe import load_recipe
from rl.plan.estimate import GIB, make_plan
from rl.plan.planned_model import planned_model
from rl.plan.simulation import Simulation
from rl.run.folder import RunFolder

MOMENTS = ("exp_avg", "exp_avg_sq")
LAUNCHERS = {
    "single_node.sh": ["--gpus", "2"],
    "multi_node.sh": ["--nodes", "2", "--gpus", "1", "--master", "localhost:29517"],
    "deepspeed_hostfile.sh": ["--hostfile", "HOSTFILE"],
    "slurm.sbatch": [],
}

# Plays the part of Python: logs its arguments and what a launcher must tell a process.
FAKE_PYTHON = """\
#!/bin/sh
echo "rank=$RANK local=$LOCAL_RANK/$LOCAL_WORLD_SIZE world=$WORLD_SIZE master=$MASTER_ADDR:$MASTER_PORT $*" >> "$LOG"
"""

# Plays the part of Slurm on one node: as many tasks as $SLURM_NTASKS, and the first failure's exit code.
FAKE_SRUN = """\
#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
    tasks[task]=$!
done
code=0
for task in "${tasks[@]}"; do wait "$task" || code=$?; done
exit $code
"""
# Plays the part of ssh, to this machine: DeepSpeed asks each host of a hostfile for its name.
FAKE_SSH = """\
#!/bin/sh
while [ "$1" = -o ]; do shift 2; done
shift
exec "$@"
"""
FAKE_SCONTROL = "#!/bin/sh\necho localhost\necho node1\n"


@pytest.fixture
def slurm(tmp_path) -> dict[str, str]:
    """Environment of a Slurm job of two tasks, whose srun starts them here."""
    path = tmp_path / "slurm"
    path.mkdir()
    for name, text in {"srun": FAKE_SRUN, "scontrol": FAKE_SCONTROL}.items():
        (path / name).write_text(text)
        (path / name).chmod(0o755)
    return {
        "PATH": f"{path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(30_000 + os.getpid() % 10_000),
        "SLURM_JOB_NODELIST": "node[0-1]",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2(x1)",
        "SLURM_SUBMIT_DIR": str(ROOT),
    }


@pytest.fixture
def fake_python(tmp_path) -> dict[str, str]:
    file = tmp_path / "a python"
    file.write_text(FAKE_PYTHON)
    file.chmod(0o755)
    return {"PYTHON": str(file), "LOG": str(tmp_path / "log")}


def launch(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    names = ("PATH", "HOME", "HF_HUB_OFFLINE", "UNIAR_CACHE", "TMPDIR")
    environment = {name: os.environ[name] for name in names if name in os.environ}
    return subprocess.run(
        ["bash", str(ROOT / "launch" / script), *arguments],
        env={**environment, "PYTHON": sys.executable, "WANDB_MODE": "disabled", **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def options(script: str, folder: Path) -> list[str]:
    (folder / "hosts").write_text("# two processes on this machine\nlocalhost slots=2\n")
    return [str(folder / "hosts") if word == "HOSTFILE" else word for word in LAUNCHERS[script]]


# Without training ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", LAUNCHERS)
def test_a_dry_run_says_what_it_would_start_and_starts_nothing(script, tmp_path, fake_python):
    words = [*options(script, tmp_path), "--dry-run", "recipe.yaml", "a.b={c: [1, 2]}"]
    said = launch(script, *words, **fake_python)
    assert said.returncode == 0, said.stderr
    assert "processes" in said.stdout or "one process per slot" in said.stdout
    assert "-m rl.train" in said.stdout.replace("--module", "-m")
    assert said.stdout.strip().endswith(r"recipe.yaml a.b=\{c:\ \[1\,\ 2\]\}")
    assert not Path(fake_python["LOG"]).exists()


@pytest.mark.parametrize("script", LAUNCHERS)
def test_help_is_the_scripts_head(script):
    said = launch(script, "--help")
    assert said.returncode == 0
    assert f"launch/{script}" in said.stdout
    assert "#" not in said.stdout


def test_arguments_arrive_as_they_were_given(tmp_path, fake_python):
    words = ["recipe.yaml", "--resume", "model.lora={r: 8}"]
    expected = {
        "single_node.sh": "-m torch.distributed.run --standalone --nproc_per_node 2 -m rl.train",
        "multi_node.sh": "-m torch.distributed.run --nnodes 2 --nproc_per_node 1 --rdzv_backend c10d --rdzv_endpoint "
        "localhost:29517 --rdzv_id uniar-rl -m rl.train",
        "deepspeed_hostfile.sh": f"-m deepspeed.launcher.runner --hostfile {tmp_path / 'hosts'} --module rl.train",
    }
    for script, command in expected.items():
        assert launch(script, *options(script, tmp_path), *words, **fake_python).returncode == 0
        assert Path(fake_python["LOG"]).read_text().strip().endswith(f"{command} {' '.join(words)}"), script


def test_slurm_tasks_are_told_their_rank(slurm, fake_python):
    done = launch("slurm.sbatch", "recipe.yaml", "resume=auto", **{**slurm, **fake_python})
    assert done.returncode == 0, done.stderr
    port = 20_000 + int(slurm["SLURM_JOB_ID"]) % 10_000
    lines = sorted(Path(fake_python["LOG"]).read_text().splitlines())
    assert lines == [
        f"rank={rank} local={rank}/2 world=2 master=localhost:{port} -m rl.train recipe.yaml resume=auto"
        for rank in range(2)
    ]


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("single_node.sh", [], "which recipe?"),
        ("single_node.sh", ["recipe.yaml", "--gpus"], "--gpus needs a value"),
        ("multi_node.sh", ["--nodes", "2", "recipe.yaml"], "--master HOST is missing"),
        ("multi_node.sh", ["--master", "a", "recipe.yaml"], "--nodes N is missing"),
        ("deepspeed_hostfile.sh", ["recipe.yaml"], "--hostfile FILE is missing"),
        ("deepspeed_hostfile.sh", ["--hostfile", "no such file", "recipe.yaml"], "does not exist"),
        ("slurm.sbatch", ["recipe.yaml"], "this is a Slurm job"),
    ],
)
def test_what_is_missing_is_named(script, words, message):
    done = launch(script, *words)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU here")
def test_without_a_gpu_the_number_of_processes_must_be_given():
    done = launch("single_node.sh", "--dry-run", "recipe.yaml")
    assert done.returncode == 2
    assert "say how many processes to start with --gpus N" in done.stderr


# Training ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def settings(nano_checkpoint, tmp_path_factory) -> dict:
    recipe = small_recipe(nano_checkpoint, tmp_path_factory.mktemp("launched"))
    return changed(recipe, trainer={"max_steps": 2, "save_steps": 2, "per_device_train_batch_size": 4})


@pytest.fixture(scope="module")
def one_process(settings, tmp_path_factory) -> RunFolder:
    folder = tmp_path_factory.mktemp("one") / "run"
    return run(settings, trainer={"per_device_train_batch_size": 8}, output_dir=str(folder))


def deepspeed(name: str, **zero: object) -> dict:
    config = json.loads((ROOT / "configs" / "deepspeed" / f"{name}.json").read_text())
    return {**config, "zero_optimization": {**config["zero_optimization"], **zero}}


def write_recipe(settings: dict, folder: Path, config: dict | None) -> Path:
    trainer = settings["trainer"] if config is None else {**settings["trainer"], "deepspeed": config}
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps({**settings, "trainer": trainer, "output_dir": str(folder / "run")}))
    return recipe


@pytest.fixture(scope="module")
def sharded(settings, tmp_path_factory) -> RunFolder:
    """Two processes under ZeRO-3, started by launch/single_node.sh, whose checkpoints hold shards alone."""
    folder = tmp_path_factory.mktemp("sharded")
    config = deepspeed("zero3", stage3_gather_16bit_weights_on_model_save=False)
    done = launch("single_node.sh", "--gpus", "2", str(write_recipe(settings, folder, config)))
    assert done.returncode == 0, done.stderr[-3000:]
    return RunFolder(folder / "run")


def test_single_node(sharded, one_process):
    require_same(sharded, one_process, updates=2)
    assert "`torchrun --nproc_per_node 2 -m rl.train recipe.yaml`" in (sharded.final / "README.md").read_text()


def test_zero3_shards_alone_make_the_same_export(sharded, tmp_path):
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    from rl.checkpoint.zero_shards import ZeroShards
    from rl.cli import main

    checkpoint = sharded.path / "checkpoint-2"
    assert not list(checkpoint.glob("*.safetensors"))
    assert main(["export", str(checkpoint), "--output", str(tmp_path / "out"), "--verify"]) == 0
    exported, final = weights(tmp_path / "out"), weights(sharded.final)
    assert exported.keys() == final.keys()
    assert all(torch.equal(exported[name], final[name]) for name in final)
    ours, theirs = ZeroShards(checkpoint), get_fp32_state_dict_from_zero_checkpoint(str(checkpoint))
    assert (ours.stage, ours.ranks) == (3, 2)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_planned_optimizer_is_what_a_rank_saves(sharded):
    recipe = load_recipe(sharded.config)
    plan = make_plan(recipe, Simulation(planned_model(recipe.model)), gpus=2, memory=80 * GIB)
    for file in sharded.path.glob("checkpoint-2/global_step2/*_optim_states.pt"):
        saved = torch.load(file, weights_only=False)["optimizer_state_dict"]
        moments = [state[key] for state in saved["optimizer_state_dict"]["state"].values() for key in MOMENTS]
        held = sum(tensor.nbytes for tensor in (*saved["fp32_flat_groups"], *moments))
        assert plan.part("optimizer") == pytest.approx(held, rel=1e-3)  # each weight is padded to the ranks


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_two_nodes(settings, one_process, tmp_path):
    recipe = write_recipe(settings, tmp_path, deepspeed("zero2"))
    words = ["--nodes", "2", "--gpus", "1", "--master", f"localhost:{free_port()}", str(recipe)]
    command = ["bash", str(ROOT / "launch" / "multi_node.sh"), *words]
    environment = {**os.environ, "PYTHON": sys.executable}
    nodes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    said = [node.communicate(timeout=500)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(text[-2000:] for text in said)
    require_same(RunFolder(tmp_path / "run"), one_process, updates=2)


@pytest.mark.slow
def test_deepspeed_hostfile_and_zero2_shards(settings, one_process, tmp_path, monkeypatch):
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    from rl.checkpoint.zero_shards import ZeroShards

    recipe = write_recipe(settings, tmp_path, deepspeed("zero2"))
    (tmp_path / "ssh").write_text(FAKE_SSH)
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    done = launch("deepspeed_hostfile.sh", *options("deepspeed_hostfile.sh", tmp_path), str(recipe))
    assert done.returncode == 0, done.stderr[-3000:]
    require_same(RunFolder(tmp_path / "run"), one_process, updates=2)
    checkpoint = tmp_path / "run" / "checkpoint-2"
    ours, theirs = ZeroShards(checkpoint), get_fp32_state_dict_from_zero_checkpoint(str(checkpoint))
    saved = weights(checkpoint)
    assert (ours.stage, ours.ranks) == (2, 2)
    assert set(ours) == set(theirs) == set(saved)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert all(torch.equal(ours[name], saved[name]) for name in saved)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["deepspeed", "accelerate"])
def test_the_launchers_own_commands(settings, one_process, tmp_path, launcher):
    """The lines of rl/train.py's head and the README; on a GPU machine without the options for two CPU processes."""
    recipe = str(write_recipe(settings, tmp_path, deepspeed("zero2")))
    if launcher == "deepspeed":
        words = ["-m", "deepspeed.launcher.runner", "--num_accelerators", "2", "--module", "rl.train", recipe]
    else:
        # torchvision may not import beside a CPU torch unless uniar comes first; `accelerate launch` imports it.
        start = "import uniar; from accelerate.commands.accelerate_cli import main; main()"
        words = ["-c", start, "launch", "--multi_gpu", "--num_processes", "2", "-m", "rl.train", recipe]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, *words], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    require_same(RunFolder(tmp_path / "run"), one_process, updates=2)


@pytest.mark.slow
def test_slurm(settings, one_process, slurm, tmp_path):
    recipe = write_recipe(settings, tmp_path, deepspeed("zero2"))
    done = launch("slurm.sbatch", str(recipe), "resume=auto", **slurm)
    assert done.returncode == 0, done.stderr[-3000:]
    require_same(RunFolder(tmp_path / "run"), one_process, updates=2)


@pytest.mark.slow
def test_offload(settings, one_process, tmp_path):
    """Without DeepSpeed's own Adam, which would be compiled first."""
    config = {**deepspeed("zero3_offload"), "zero_force_ds_cpu_optimizer": False}
    done = launch("single_node.sh", "--gpus", "2", str(write_recipe(settings, tmp_path, config)))
    assert done.returncode == 0, done.stderr[-3000:]
    require_same(RunFolder(tmp_path / "run"), one_process, updates=2)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_launcher_saves_first(settings, tmp_path, number):
    settings = {**settings, "trainer": {**settings["trainer"], "max_steps": 5000, "save_steps": 5000}}
    recipe, folder = write_recipe(settings, tmp_path, None), RunFolder(tmp_path / "run")
    command = ["bash", str(ROOT / "launch" / "single_node.sh"), "--gpus", "2", str(recipe)]
    with (tmp_path / "log").open("w") as log:
        launcher = subprocess.Popen(
            command, env={**os.environ, "PYTHON": sys.executable}, stdout=log, stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + 300
        while len(folder.read()) < 3 and launcher.poll() is None and time.monotonic() < deadline:
            time.sleep(0.5)
        launcher.send_signal(number)
        launcher.wait(timeout=120)
    said = (tmp_path / "log").read_text()
    assert "stopped by " in said, said[-3000:]
    assert newest_good(folder.path) is not None
