"""What a user does, on a model as wide as the released one and a few layers deep: its vocabulary, hidden size, head,
tokenizer and autoencoder, in bfloat16 and in shards."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from PIL import Image
from support.real_widths import build

GB = 10**9
MEMORY, DISK = 13 * GB, 20 * GB
"""bytes that must be free"""
MOST = 11 * GB
"""bytes that one command may hold, mapped files with them"""

WATCHED = """
import sys
from rl.cli import main
code = main(sys.argv[1:])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""
"""prints at last how many KiB the process held at most"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real_widths")
    if psutil.virtual_memory().available < MEMORY or shutil.disk_usage(folder).free < DISK:
        pytest.skip(f"needs {MEMORY // GB} GB of memory and {DISK // GB} GB of disk")
    (folder / "model").mkdir()
    build(folder / "model")
    yield folder
    shutil.rmtree(folder)


def command(folder: Path, *words: object) -> str:
    """What a command of uniar-rl prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WATCHED, *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "UNIAR_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    *said, held = done.stdout.splitlines()
    print(f"{words[0]}: {int(held) * 1024 / GB:.1f} GB")
    assert int(held) * 1024 < MOST
    return "\n".join(said)


def test_generate_edit_and_ask(folder):
    assert len(list((folder / "model").glob("model-*-of-*.safetensors"))) == 5
    model = ("--model", folder / "model", "--dtype", "bfloat16", "--quiet")
    size = ("--height", 128, "--width", 128, "--steps", 2, "--upsampling-ratio", 1)
    command(folder, "generate", "--prompt", "a red circle", "--output", "drawn.png", *size, *model)
    command(folder, "edit", "--image", "drawn.png", "--prompt", "make it blue", "--output", "edited.png", *size, *model)
    for name in ("drawn.png", "edited.png"):
        with Image.open(folder / name) as image:
            assert image.size == (128, 128)
            assert len(set(image.convert("L").tobytes())) > 10
    said = ("--prompt", "what is this?", "--max-new-tokens", 3, "--temperature", 0)
    command(folder, "chat", "--image", "drawn.png", *said, *model)
    assert len(list((folder / "cache" / "prompt_embeddings").iterdir())) == 1


def test_a_lora_update_and_its_export(folder):
    (folder / "prompts.jsonl").write_text('{"prompt": "a red circle"}\n')
    recipe = {
        "output_dir": "run",
        "model": {"path": "model", "dtype": "bfloat16", "lora": {"r": 4, "alpha": 8}},
        "data": {"prompts": "prompts.jsonl"},
        "rollout": {"height": 128, "width": 128, "samples_per_prompt": 2},
        "decode": {"num_inference_steps": 1, "batch_size": 1},
        "rewards": [{"use": "compressibility"}],
        "algorithm": {"beta": 0.01},
        "trainer": {"max_steps": 1, "save_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-3},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command(folder, "train", "recipe.yaml")
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    [line] = [line for line in lines if "loss" in line]
    assert 0 < line["grad_norm"] < 1e4
    exported = command(
        folder, "export", "run/checkpoint-1", "--output", "exported", "--verify", "--max-shard-size", "1GB"
    )
    assert "differ" in exported
    names = {path.name for path in (folder / "exported").iterdir()}
    assert {"model.safetensors.index.json", "sd3_transformer", "bsq_encoder", "README.md"} <= names
