"""How time and memory of an update grow with processes, images, resolution and group size, measured on this machine.

    python benchmarks/scaling.py                    # 11 recipes in turn, 3 rounds
    python benchmarks/scaling.py --rounds 1 --updates 4

Trains a small random model with recipes that differ from a base recipe in one thing, on 1 and 2 processes without a
GPU, one thread each. Every round runs all of them in turn, so that what else the machine does falls on all alike.
Prints the medians of an update: seconds on the clock, processor seconds of all processes together, and the largest
memory that a process had. On a machine with other work the clock says little and processor seconds say more.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parent.parent

# A reward that costs nothing and writes down, once a rollout, what this process has used so far.
METER = """\
import json, os, resource, time
from pathlib import Path

def meter(prompts, images, **_):
    used = resource.getrusage(resource.RUSAGE_SELF)
    line = [time.time(), used.ru_utime + used.ru_stime, used.ru_maxrss * 1024]
    with Path(__file__).with_name(f"meter-{os.environ.get('RANK', '0')}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\\n")
    return [0.0] * len(prompts)
meter.overlaps_decoding = False
"""


@dataclass(frozen=True)
class Case:
    """One recipe: what it is called, and what it changes in the base."""

    name: str
    processes: int = 1
    engine: str | None = None
    images: int = 32
    """an update, over all processes"""
    pixels: int = 64
    group: int = 8
    accumulation: int = 1


BASE = Case("base")
CASES = (
    BASE,
    Case("2 processes, DDP", processes=2),
    Case("2 processes, ZeRO-2", processes=2, engine="zero2"),
    Case("2 processes, ZeRO-3", processes=2, engine="zero3"),
    Case("2 processes, DDP, 64 images", processes=2, images=64),
    Case("16 images", images=16),
    Case("64 images", images=64),
    Case("64 images in 2 micro-batches", images=64, accumulation=2),
    Case("128×128 pixels", pixels=128),
    Case("groups of 4", group=4),
    Case("groups of 32", group=32),
)


@dataclass
class Measured:
    """Of all updates of all rounds: on the clock, on all processors, in bytes of the largest process."""

    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)


def measure(cases: Sequence[Case], rounds: int, updates: int, preset: str) -> dict[str, Measured]:
    """All cases in turn, `rounds` times, so that what else the machine does falls on all alike."""
    found = {case.name: Measured() for case in cases}
    for number in range(rounds):
        for case in cases:
            print(f"round {number + 1}: {case.name} ...", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory() as folder:
                run(case, Path(folder), updates, preset)
                meters = [
                    [json.loads(line) for line in file.read_text().splitlines()]
                    for file in sorted(Path(folder).glob("meter-*.jsonl"))
                ]
            # From one rollout's end to the next is an update; the first one warms up.
            clock = [line[0] for line in meters[0]]
            processor = [sum(meter[row][1] for meter in meters) for row in range(len(clock))]
            found[case.name].seconds += [after - before for before, after in pairwise(clock[1:])]
            found[case.name].processor += [after - before for before, after in pairwise(processor[1:])]
            found[case.name].memory.append(max(meter[-1][2] for meter in meters))
    return found


def run(case: Case, folder: Path, updates: int, preset: str) -> None:
    """Trains one case in `folder`."""
    (folder / "meter.py").write_text(METER)
    prompts = [json.dumps({"prompt": f"a {size} {colour} kite"}) for size in range(16) for colour in ("red", "blue")]
    (folder / "prompts.jsonl").write_text("\n".join(prompts) + "\n")
    recipe = {
        "model": {"preset": preset, "dtype": "float32"},
        "data": {"prompts": str(folder / "prompts.jsonl")},
        "rollout": {"height": case.pixels, "width": case.pixels, "samples_per_prompt": case.group},
        "decode": {"num_inference_steps": 4, "batch_size": 16},
        "rewards": [{"use": "color", "color": "red"}, {"use": f"{folder / 'meter.py'}:meter", "weight": 0}],
        "trainer": {
            "max_steps": updates,
            "save_strategy": "no",
            "per_device_train_batch_size": case.images // case.processes // case.accumulation,
            "gradient_accumulation_steps": case.accumulation,
            "deepspeed": None if case.engine is None else str(ROOT / "configs" / "deepspeed" / f"{case.engine}.json"),
        },
        "output_dir": str(folder / "run"),
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(case.processes)]
    command = [sys.executable, *(launcher if case.processes > 1 else []), "-m", "rl.train", str(folder / "recipe.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{case.name}: {done.stderr[-2000:]}")


def table(found: dict[str, Measured]) -> str:
    base = found[BASE.name]
    rows = [
        "| | seconds per update | of the base | processor seconds per update | of the base | memory of a process |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, case in found.items():
        clock, processor = statistics.median(case.seconds), statistics.median(case.processor)
        rows.append(
            f"| {name} | {clock:.2f} | {clock / statistics.median(base.seconds):.2f} | {processor:.2f} | "
            f"{processor / statistics.median(base.processor):.2f} | {statistics.median(case.memory) / 1e6:.0f} MB |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures how updates of a small model grow, on 1 and 2 processes.")
    parser.add_argument("--rounds", type=int, default=3, help="times that each recipe is run (default: 3)")
    parser.add_argument("--updates", type=int, default=6, help="updates of each run, the first to warm up (default: 6)")
    parser.add_argument("--preset", default="nano", help="small random model (default: nano)")
    arguments = parser.parse_args()
    print(table(measure(CASES, arguments.rounds, arguments.updates, arguments.preset)))


if __name__ == "__main__":
    main()
