"""Nothing is looked up or connected to beyond this machine, unless a recipe asks for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.training_runs import changed, small_recipe

ROOT = Path(__file__).parents[2]
GUARD = ROOT / "tests" / "support" / "network_guard"
REPORTS = ("TELEMETRY", "DO_NOT_TRACK", "HF_HUB_DISABLE_UPDATE_CHECK", "WANDB_ERROR_REPORTING", "GRADIO_ANALYTICS")


@pytest.fixture
def guarded(tmp_path):
    """Runs Python in a process, and those that it starts, under the guard; what of the network each asked for."""
    log = tmp_path / "guard.log"
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("CI", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") and not any(word in name for word in REPORTS)
    }

    def run(*words: object, cwd: Path = ROOT, **variables: str) -> tuple[subprocess.CompletedProcess, str]:
        log.write_text("")
        paths = os.pathsep.join([str(GUARD), str(ROOT)])
        # A cache of its own: nothing is found there that would spare a look-up.
        environment = {**kept, "PYTHONPATH": paths, "NETWORK_GUARD_LOG": str(log), "HF_HOME": str(tmp_path / "hub")}
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=cwd,
            env={**environment, "OMP_NUM_THREADS": "1", **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        return done, log.read_text()

    return run


def test_the_guard_sees_what_leaves(guarded):
    """Look-ups, connections and datagrams of this thread and others, of children too; not those within the machine."""
    program = """if True:
        import socket, subprocess, sys, threading
        from huggingface_hub import HfApi
        def leave():
            for reach in (
                lambda: socket.create_connection(("huggingface.co", 443), timeout=1),
                lambda: socket.socket().connect(("192.0.2.1", 80)),
                lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53)),
                lambda: HfApi().model_info("a/b"),
            ):
                try:
                    reach()
                except Exception:
                    pass
        threading.Thread(target=leave).start()
        listener = socket.create_server(("127.0.0.1", 0))
        socket.create_connection(listener.getsockname())
        socket.getaddrinfo("localhost", 80)
        subprocess.run([sys.executable, "-c", "import socket; socket.gethostbyname('example.com')"])
    """
    _, asked = guarded("-c", program)
    for expected in (
        "socket.getaddrinfo 'huggingface.co'",
        "socket.connect ('192.0.2.1', 80)",
        "socket.sendto ('192.0.2.1', 53)",
        "socket.gethostbyname 'example.com'",
        "in model_info",
    ):
        assert expected in asked
    assert "127.0.0.1" not in asked
    assert "localhost" not in asked


@pytest.mark.parametrize(("said", "off"), [({}, True), ({"HF_HUB_DISABLE_TELEMETRY": "0"}, False)])
def test_reports_are_off_even_where_transformers_came_first_unless_they_are_asked_for(guarded, said, off):
    program = (
        "import transformers, uniar; from huggingface_hub import constants as c; print(c.HF_HUB_DISABLE_TELEMETRY)"
    )
    done, asked = guarded("-c", program, **said)
    assert (done.stdout, asked) == (f"{off}\n", "")


def test_commands_on_local_files_ask_nobody(guarded, nano_checkpoint, tmp_path):
    """train (whole; and LoRA, by `datasets`, with TensorBoard and W&B offline), export, generate, chat and so on."""
    recipe = small_recipe(nano_checkpoint, tmp_path)
    recipe["trainer"] |= {"max_steps": 1, "save_steps": 1}
    whole = changed(recipe, evaluate={"prompts": recipe["data"]["prompts"], "samples_per_prompt": 1})
    table = tmp_path / "table"
    table.mkdir()
    (table / "train.jsonl").write_text(Path(recipe["data"]["prompts"]).read_text())
    reporters = {"report_to": ["tensorboard", "wandb"], "dataloader_num_workers": 1}
    lora = changed(
        recipe,
        model={"lora": {"r": 2}},
        data={"prompts": f"datasets:{table}"},
        trainer=reporters,
        output_dir=str(tmp_path / "lora"),
    )
    for name, content in (("whole.yaml", whole), ("lora.yaml", lora)):
        (tmp_path / name).write_text(json.dumps(content))
    picture = tmp_path / "picture.png"
    drawing = ("--prompt", "red", "--height", 64, "--width", 64, "--steps", 1, "--output", picture)
    commands = (
        ("train", tmp_path / "whole.yaml"),
        ("train", tmp_path / "lora.yaml"),
        ("export", tmp_path / "run" / "checkpoint-1", "--output", tmp_path / "exported"),
        ("export", tmp_path / "lora" / "checkpoint-1", "--output", tmp_path / "merged"),
        ("evaluate", tmp_path / "whole.yaml", "--model", tmp_path / "exported"),
        ("generate", "--model", tmp_path / "merged", *drawing),
        ("chat", "--model", nano_checkpoint, "--image", picture, "--prompt", "what", "--max-new-tokens", 2),
        ("plan", tmp_path / "whole.yaml"),
    )
    (tmp_path / "commands.json").write_text(json.dumps([list(map(str, words)) for words in commands]))
    program = """if True:
        import json, sys
        from rl.cli import main
        for words in json.load(open(sys.argv[1])):
            print(words, flush=True)
            assert main(words) == 0
    """
    variables = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}
    done, asked = guarded("-c", program, tmp_path / "commands.json", **variables)
    assert done.returncode == 0, done.stdout[-3000:]
    assert asked == ""
    assert (tmp_path / "merged" / "model.safetensors").exists()
    (reported,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert str(nano_checkpoint).encode() not in reported.read_bytes()
