"""Programs in a process of their own, where this project is installed as pyproject.toml says: what the tests' own
process has imported may hide what a program lacks."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def installed(folder: Path) -> Path:
    """The metadata that pip would write, in `folder`, which goes on Python's path: its entry points are found there."""
    metadata = folder / f"uniar_rl-{PROJECT['version']}.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: uniar-rl\nVersion: {PROJECT['version']}\n")
    groups = {"console_scripts": PROJECT["scripts"], **PROJECT["entry-points"]}
    lines = [
        line
        for group, entries in groups.items()
        for line in (f"[{group}]", *(f"{name} = {target}" for name, target in entries.items()))
    ]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


def run_fresh(program: str, folder: Path, *first: Path, timeout: float = 300) -> subprocess.CompletedProcess:
    """Runs a program's text in `folder`, with the folders `first` before all others on Python's path."""
    paths = [*first, ROOT, installed(folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout
    )
