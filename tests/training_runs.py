"""What tests of training share: a small recipe, running it here or on several processes, reading what it left."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from rl.recipe import recipe_from_mapping
from rl.run_folder import RunFolder
from rl.train import train

ROOT = Path(__file__).parent.parent
COLOURS = ("red", "blue", "green", "yellow")


def small_recipe(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Three updates of a small model on 4 prompts, 2 of them a rollout; no evaluation; its files are in `folder`."""
    lines = [json.dumps({"prompt": f"a {colour} square", "task": "color"}) for colour in COLOURS]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    return {
        "model": {"path": str(checkpoint), "dtype": "float32"},
        "data": {"prompts": str(folder / "prompts.jsonl")},
        "rollout": {"height": 64, "width": 64, "samples_per_prompt": 4},
        "decode": {"num_inference_steps": 1, "batch_size": 16},
        "rewards": [{"use": "color", "color": "red", "softness": 0.6, "tolerance": 0.2}],
        "evaluate": {"prompts": None, "at_start": False, "guidance_scale": 1.0},
        "trainer": {
            "max_steps": 3,
            "save_steps": 3,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 8,
            "gradient_checkpointing": False,
        },
        "output_dir": str(folder / "run"),
    }


def changed(settings: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """The recipe with some keys of its sections set otherwise."""
    merged = {key: dict(value) if isinstance(value, dict) else value for key, value in settings.items()}
    for name, values in sections.items():
        merged[name] = {**merged.get(name, {}), **values} if isinstance(values, dict) else values
    return merged


def run(settings: dict[str, Any], resume: bool = False, **sections: Any) -> RunFolder:
    """Trains in this process."""
    return train(recipe_from_mapping(changed(settings, **sections)), resume=resume)


def launch(
    settings: dict[str, Any], processes: int, *more: str, fails: bool = False, **sections: Any
) -> tuple[RunFolder, str]:
    """Trains under torchrun; the run's folder, and what was printed to both streams. `fails`: it must not succeed."""
    recipe = changed(settings, **sections)
    folder = Path(recipe["output_dir"])
    path = folder.with_suffix(".yaml")
    path.write_text(json.dumps(recipe))
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--standalone"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "rl.train", str(path), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
    )
    assert (done.returncode != 0) == fails, done.stdout[-5000:]
    return RunFolder(folder), done.stdout


def deepspeed(stage: str) -> str:
    """A configuration of configs/deepspeed, for `trainer.deepspeed`."""
    return str(ROOT / "configs" / "deepspeed" / f"{stage}.json")


def logged(folder: RunFolder, key: str) -> list[float]:
    return [line[key] for line in folder.read() if key in line]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")
