"""Memory that `uniar-rl export` takes, from every kind of checkpoint, on a model of some hundred million weights.

    python benchmarks/export.py                       # 500 million weights; 8 GB of disk in the temporary folder
    python benchmarks/export.py --hidden 512 --layers 8

Writes a random bfloat16 model, and of it checkpoints as training leaves them: whole, ZeRO-2 and ZeRO-3 shards of 2
ranks with their optimizer states, a LoRA adapter. Then exports each in a process of its own and prints what that
process held at most beyond what the command itself needs (measured on an export of a small preset): memory of its own,
which has to be there, and together with mapped files, whose pages the system takes back when it needs them. One copy is
the size of the bfloat16 weights.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

# The folder of this script comes first, where rewards.py would be taken for the package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.small_preset import SMALL  # noqa: E402
from rl.checkpoint.tensor_files import TensorFiles, save_tensors  # noqa: E402
from rl.config.model import LoraSection  # noqa: E402
from rl.policy.loading import trainable  # noqa: E402
from uniar.modeling_uniar import UniARForConditionalGeneration  # noqa: E402
from uniar.presets.build import PRESETS, build_preset  # noqa: E402

ROOT = Path(__file__).parent.parent
RANKS = 2


@dataclass(frozen=True)
class Peak:
    """Most bytes that a process held."""

    own: int
    with_files: int
    seconds: float


def build_source(folder: Path, hidden: int, layers: int) -> Path:
    """A random checkpoint in bfloat16, in the released layout."""
    PRESETS["mid-size"] = replace(SMALL, text_hidden=hidden, text_layers=layers, text_heads=hidden // 64)
    build_preset("mid-size", folder)
    weights = TensorFiles(folder)
    halves = {name: weights[name].to(torch.bfloat16) for name in weights}
    save_tensors(halves, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    return folder


def write_whole(source: Path, checkpoint: Path) -> None:
    checkpoint.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(source / name, checkpoint / name)


def write_shards(source: Path, checkpoint: Path, stage: int) -> None:
    """The weights in float32 as DeepSpeed cuts them, beside two moments of the same size
    (rl/checkpoint/zero_shards.py)."""
    shards = checkpoint / "global_step1"
    shards.mkdir(parents=True)
    shutil.copyfile(source / "config.json", checkpoint / "config.json")
    (checkpoint / "latest").write_text("global_step1")
    stored = TensorFiles(source)
    weights = {name: stored[name].float() for name in stored}
    parts = _cut_by_weight(weights) if stage == 3 else _cut_as_one(weights)
    shared = {
        "buffer_names": [],
        "param_shapes": [{name: tensor.shape for name, tensor in weights.items()}],
        "frozen_param_shapes": None,
        "frozen_param_fragments": None,
        "shared_params": {},
        "module": {},
    }
    for rank, part in enumerate(parts):
        flat = {"fp32_flat_groups": [part]} if stage == 3 else {"single_partition_of_fp32_groups": [part]}
        moments = {"exp_avg": torch.zeros_like(part), "exp_avg_sq": torch.zeros_like(part)}
        state = {"zero_stage": stage, "partition_count": RANKS if stage == 3 else [RANKS], **flat, "state": moments}
        torch.save({"optimizer_state_dict": state}, shards / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        if stage == 3:
            torch.save(shared, shards / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    if stage == 2:
        torch.save(shared, shards / "mp_rank_00_model_states.pt")


def _cut_as_one(weights: Mapping[str, Tensor]) -> list[Tensor]:
    joined = torch.cat([weight.flatten() for weight in weights.values()])
    padded = torch.nn.functional.pad(joined, (0, -len(joined) % (2 * RANKS)))
    return [part.clone() for part in padded.chunk(RANKS)]


def _cut_by_weight(weights: Mapping[str, Tensor]) -> list[Tensor]:
    cut = []
    for weight in weights.values():
        each = math.ceil(weight.numel() / RANKS)
        cut.append(torch.nn.functional.pad(weight.flatten(), (0, each * RANKS - weight.numel())).chunk(RANKS))
    return [torch.cat([pieces[rank] for pieces in cut]) for rank in range(RANKS)]


def write_adapter(source: Path, checkpoint: Path) -> None:
    model = UniARForConditionalGeneration.from_pretrained(source, torch_dtype=torch.bfloat16)
    trainable(model, LoraSection(r=32, alpha=64)).save_pretrained(checkpoint)


def export(checkpoint: Path, source: Path, target: Path, shard_size: str) -> Peak:
    """Runs the command and watches its process."""
    words = [
        "export",
        str(checkpoint),
        "--source",
        str(source),
        "--output",
        str(target),
        "--max-shard-size",
        shard_size,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "rl.cli", *words],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    own = together = 0
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            break
        held = {
            key: int(value.split()[0]) * 1024
            for key, _, value in (line.partition(":") for line in lines)
            if " kB" in value
        }
        own, together = max(own, held.get("RssAnon", 0)), max(together, held.get("VmHWM", 0))
        time.sleep(0.01)
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(said.decode()[-2000:])
    shutil.rmtree(target)
    return Peak(own, together, time.monotonic() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the memory of uniar-rl export.")
    parser.add_argument("--hidden", type=int, default=1536, help="hidden size of the random model (default: 1536)")
    parser.add_argument("--layers", type=int, default=24, help="text layers (default: 24)")
    parser.add_argument("--shard-sizes", nargs="+", default=["5GB", "200MB"], help="default: 5GB 200MB")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tiny = build_preset("nano", folder / "nano")
        write_whole(tiny, folder / "checkpoint-0")
        command = export(folder / "checkpoint-0", tiny, folder / "out", "5GB")
        source = build_source(folder / "source", arguments.hidden, arguments.layers)
        stored = TensorFiles(source).stored.values()
        copy = sum(tensor.bytes for tensor in stored)
        print(f"one copy: {copy / 1e6:.0f} MB; largest weight {max(tensor.bytes for tensor in stored) / 1e6:.0f} MB")
        print(f"the command itself: {command.own / 1e6:.0f} MB, {command.with_files / 1e6:.0f} MB with mapped files")
        print("| checkpoint | shards of | its own memory, MB | copies | with mapped files, MB | seconds |")
        print("| --- | --- | --- | --- | --- | --- |")
        makers = {
            "whole": write_whole,
            "ZeRO-2 shards": lambda source, target: write_shards(source, target, 2),
            "ZeRO-3 shards": lambda source, target: write_shards(source, target, 3),
            "LoRA": write_adapter,
        }
        for name, make in makers.items():
            checkpoint = folder / "checkpoint-1"
            make(source, checkpoint)
            for size in arguments.shard_sizes:
                peak = export(checkpoint, source, folder / "out", size)
                own, files = peak.own - command.own, peak.with_files - command.with_files
                cells = [f"{own / 1e6:.0f}", f"{own / copy:.2f}", f"{files / 1e6:.0f}", f"{peak.seconds:.0f}"]
                print(f"| {name} | {size} | {' | '.join(cells)} |", flush=True)
            shutil.rmtree(checkpoint)


if __name__ == "__main__":
    main()
