"""What tests of training share: a small recipe, running it here or on several processes, reading what it left, and
comparing it with what another left."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.warm_process import ROOT, run_warm

from rl.config.recipe import recipe_from_mapping
from rl.policy.samples import DrawSettings
from rl.run.folder import RunFolder
from rl.train import train

COLOURS = ("red", "blue", "green", "yellow")
SMALL_DRAWING = DrawSettings(
    height=64,
    width=64,
    temperature=0.5,
    guidance_scale=None,
    upsampling_ratio=1.0,
    num_inference_steps=1,
    decoder_guidance_scale=1.0,
    decode_batch_size=8,
    seed=1,
)


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
    settings: dict[str, Any],
    processes: int,
    *more: str,
    fails: bool = False,
    program: Sequence[str] = ("-m", "rl.train"),
    variables: Mapping[str, str] | None = None,
    **sections: Any,
) -> tuple[RunFolder, str]:
    """Trains as under torchrun; the run's folder, and what was printed to stderr, then to stdout. fails: it must not
    succeed. program: what each process runs; variables: of its environment."""
    recipe = changed(settings, **sections)
    folder = Path(recipe["output_dir"])
    path = folder.with_suffix(".yaml")
    path.write_text(json.dumps(recipe))
    done = run_warm(*program, path, *more, processes=processes, variables=variables, timeout=240)
    said = done.stderr + done.stdout
    assert (done.returncode != 0) == fails, said[-5000:]
    assert "`torch.distributed." not in said  # a warning for each of DeepSpeed's collectives
    return RunFolder(folder), said


def deepspeed(stage: str) -> str:
    """A configuration of configs/deepspeed, for `trainer.deepspeed`."""
    return str(ROOT / "configs" / "deepspeed" / f"{stage}.json")


def logged(folder: RunFolder, key: str) -> list[float]:
    return [line[key] for line in folder.read() if key in line]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def require_same(found: RunFolder, expected: RunFolder, updates: int) -> None:
    """Metrics and weights agree, but for the order in which processes add numbers up. Of `updates` or more there is a
    loss each; a reward only where a rollout began."""
    assert len(logged(found, "loss")) >= updates
    for key in ("reward", "loss", "kl", "entropy", "grad_norm"):
        assert logged(found, key), key
        assert logged(found, key) == pytest.approx(logged(expected, key), rel=1e-4, abs=1e-7), key
    one, two = weights(expected.final), weights(found.final)
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[name].float(), two[name].float(), atol=1e-4) for name in one)


def nudge(model: torch.nn.Module) -> None:
    """Stands for training: moves every trained parameter."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
