"""What is in the folder of a run, compared with what is in another's."""

import json
import os
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch

ABOUT_THE_CLOCK = ("environment.json", "report.html", "metrics.png")
"""files that must be there in both, and say when, how fast (metrics.png in a panel) and by which command"""


def require_as_if_never_killed(killed: Path, whole: Path) -> None:
    """The same files, and the same in each: records, pictures, weights, optimizer, random states."""
    names = [sorted(str(file.relative_to(run)) for file in run.rglob("*") if file.is_file()) for run in (killed, whole)]
    assert names[0] == names[1]
    for name in names[1]:
        if Path(name).name in ABOUT_THE_CLOCK:
            continue
        assert content(killed / name, killed) == content(whole / name, whole), name


def content(file: Path, run: Path) -> Any:
    """What is in a file of a run, but for the name of its folder and for seconds."""
    if file.suffix in (".pt", ".pth", ".bin"):  # the same values may be pickled in other words after a load
        return plain(torch.load(file, weights_only=False), run)
    raw = file.read_bytes().replace(os.fsencode(run), b"RUN")
    if file.name == "manifest.json":
        return sorted(json.loads(raw)["files"])  # whose sums are of the files with the folder's name and seconds
    if file.suffix in (".json", ".jsonl"):
        return [plain(json.loads(text), run) for text in (raw.splitlines() if file.suffix == ".jsonl" else [raw])]
    return raw


def plain(value: Any, run: Path) -> Any:
    """A value in such that compare by what they are."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        timed = [key for key in map(str, value) if "second" in key or "time" in key or key.startswith("memory/")]
        return {str(key): plain(own, run) for key, own in value.items() if str(key) not in timed}
    if isinstance(value, list | tuple):
        return [plain(own, run) for own in value]
    if isinstance(value, str):
        return value.replace(str(run), "RUN")
    if hasattr(value, "__dict__") and not isinstance(value, type | Enum) and not callable(value):
        return type(value).__name__, plain(vars(value), run)
    return value.tobytes() if isinstance(value, np.ndarray) else getattr(value, "__qualname__", repr(value))
