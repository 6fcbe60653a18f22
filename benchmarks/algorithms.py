"""Training settings compared on UniAR-Tiny: final held-out scores over several seeds, and wall time.

    python benchmarks/algorithms.py                                   # five settings, three seeds each: over an hour
    python benchmarks/algorithms.py --recipes tiny_5min tiny_lora --seeds 0 1
    python benchmarks/algorithms.py --table                           # what is there so far

Each run is `uniar-rl train configs/RECIPE.yaml` with a seed, in a process of its own, into runs/algorithms/RECIPE-SEED.
A run that has ended is not run again, one that was interrupted goes on. The seed changes rollouts and the order of
prompts; held-out prompts and their noise are the same, so runs are paired with the evaluation before training.
`--jobs 2` runs two at a time with a thread each, which on 2 cores takes half as long as one after the other.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from uniar.reading.yaml_files import read_yaml

CONFIGS = Path("configs")
FOLDER = Path("runs/algorithms")
BASE = "tiny_5min"
ALL = sorted(file.stem for file in CONFIGS.glob("tiny_*.yaml") if read_yaml(file)[0].get("base") == f"{BASE}.yaml")
DEFAULT = [BASE, "tiny_gspo", "tiny_conditional", "tiny_unguided", "tiny_lora"]
ANSWERS = "eval_understanding/exact_match"


def train(recipe: str, seed: int, threads: int | None) -> None:
    """Runs or goes on with one run. Raises CalledProcessError where it fails."""
    if measured(recipe, seed) is not None:
        return
    output = FOLDER / f"{recipe}-{seed}"
    overrides = [f"seed={seed}", f"output_dir={output}", "resume=auto", "trainer.save_steps=40"]
    print(f"--- {recipe}, seed {seed}", flush=True)
    environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    command = [sys.executable, "-m", "rl.train", str(CONFIGS / f"{recipe}.yaml"), *overrides]
    subprocess.run(command, check=True, env=environment)


def measured(recipe: str, seed: int) -> dict[str, float] | None:
    """Held-out scores before and after, and minutes of training; None for a run that has not ended."""
    output = FOLDER / f"{recipe}-{seed}"
    if not (output / "final").is_dir():
        return None
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    held_out = [line["eval_reward"] for line in lines if "eval_reward" in line]
    answers = [line[ANSWERS] for line in lines if line.get(ANSWERS) is not None]
    seconds = [value for line in lines for name, value in line.items() if name.startswith("seconds/")]
    return {
        "before": held_out[0],
        "after": held_out[-1],
        "answers": answers[-1] - answers[0],
        "minutes": sum(seconds) / 60,
    }


def changes(recipe: str) -> str:
    """What a recipe changes in the one it builds on, as overrides on the command line."""
    own: dict[str, Any] = read_yaml(CONFIGS / f"{recipe}.yaml")[0]
    keys = {f"{name}.{key}": value for name, section in own.items() if name != "base" for key, value in section.items()}
    return " ".join(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in keys.items())


def table(recipes: list[str], seeds: list[int]) -> str:
    """Markdown, a row a recipe: mean and spread (standard deviation over seeds) of the final score."""
    rows = ["| recipe | changes | seeds | held-out score | gain | answers | minutes |", "| --- " * 7 + "|"]
    for recipe in recipes:
        found = [result for seed in seeds if (result := measured(recipe, seed)) is not None]
        if not found:
            continue
        after = [result["after"] for result in found]
        spread = f" ± {100 * statistics.stdev(after):.1f}" if len(after) > 1 else ""
        means = {name: statistics.fmean(result[name] for result in found) for name in found[0]}
        rows.append(
            f"| {recipe} | {'none' if recipe == BASE else changes(recipe)} | {len(found)} | "
            f"{100 * means['after']:.1f}%{spread} | {100 * (means['after'] - means['before']):+.1f} | "
            f"{100 * means['answers']:+.1f} | {means['minutes']:.1f} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=[BASE, *ALL], default=DEFAULT, help="default: %(default)s")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, a thread each where it is above 1")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and stop")
    arguments = parser.parse_args()
    if not arguments.table:
        threads = 1 if arguments.jobs > 1 else None
        # A seed of every recipe first, so that an early stop leaves a comparison.
        todo = [(recipe, seed) for seed in arguments.seeds for recipe in arguments.recipes]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(lambda run: train(*run, threads), todo))
    print(table(arguments.recipes, arguments.seeds))


if __name__ == "__main__":
    main()
