"""What a run ran on: versions, hardware, and the command that started it, without keys, addresses and paths."""

import os
import platform
import resource
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from uniar.shareable import shareable

PACKAGES = ("uniar-rl", "torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "diffusers", "safetensors")


def versions() -> dict[str, str]:
    """Package → version, of those that are installed and that results depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def environment(processes: int, command: Sequence[str] = sys.argv) -> dict[str, Any]:
    """For environment.json. processes: that the run has, over all machines; command: what started it, in words."""
    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(command[0]).name, *(shareable(word) for word in command[1:])]),
        "processes": processes,
        "versions": {"python": platform.python_version(), **versions()},
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": {"name": _cpu(), "cores": os.cpu_count(), "memory_gb": round(psutil.virtual_memory().total / 1e9, 1)},
        "gpus": [{"name": gpu.name, "memory_gb": round(gpu.total_memory / 1e9, 1)} for gpu in gpus],
        "cuda": torch.version.cuda if gpus else None,
    }


def peak_memory_gb() -> float:
    """The most memory that this process has had at once so far, in GB (10⁹ bytes): of its GPU, or where it uses none of
    the machine's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
