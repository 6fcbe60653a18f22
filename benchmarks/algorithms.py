"""Training settings compared on UniAR-Tiny: final held-out scores over several seeds, and wall time.

    python benchmarks/algorithms.py                                   # all settings, three seeds each: over an hour
    python benchmarks/algorithms.py --settings grpo dppo_tv --seeds 0 1
    python benchmarks/algorithms.py --table                           # what is there so far

Each run is `uniar-rl train configs/tiny_5min.yaml` with a setting's overrides and a seed, in a process of its own, into
runs/algorithms/SETTING-SEED. A run that has ended is not run again, one that was interrupted goes on. The seed changes
rollouts and the order of prompts; held-out prompts and their noise are the same, so runs are paired with the
evaluation before training.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

SETTINGS: dict[str, list[str]] = {
    "grpo": [],
    "grpo, visual token": ["algorithm.ratio_level=visual_token"],
    "gspo": ["algorithm.loss=gspo"],
    "cispo": ["algorithm.loss=cispo"],
    "dppo_tv": ["algorithm.loss=dppo_tv"],
    "no std": ["algorithm.advantage.scale=none"],
    "conditional": ["rollout.guidance=conditional"],
    "guided_detach": ["rollout.guidance=guided_detach"],
    "none": ["rollout.guidance=none", "rollout.guidance_scale=1.0"],
    "lora": ["model.lora={r: 16}", "trainer.learning_rate=1e-3"],
}
"""What each changes in the recipe; the first is the recipe itself."""
DEFAULT = ["grpo", "gspo", "dppo_tv", "conditional", "none"]
FOLDER = Path("runs/algorithms")
ANSWERS = "eval_understanding/exact_match"


def folder(setting: str, seed: int) -> Path:
    return FOLDER / f"{setting.replace(', ', '-').replace(' ', '_')}-{seed}"


def train(setting: str, seed: int, recipe: str) -> None:
    """Runs or goes on with one run. Raises CalledProcessError where it fails."""
    if measured(setting, seed) is not None:
        return
    output = folder(setting, seed)
    overrides = [*SETTINGS[setting], f"seed={seed}", f"output_dir={output}", "resume=auto", "trainer.save_steps=40"]
    print(f"--- {setting}, seed {seed}", flush=True)
    subprocess.run([sys.executable, "-m", "rl.train", recipe, *overrides], check=True)


def measured(setting: str, seed: int) -> dict[str, float] | None:
    """Held-out scores before and after, and minutes of training; None for a run that has not ended."""
    output = folder(setting, seed)
    if not (output / "final").is_dir():
        return None
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    held_out = [line for line in lines if "eval_reward" in line]
    phases = [line for line in lines if "seconds/update" in line]
    seconds = sum(value for line in phases for name, value in line.items() if name.startswith("seconds/"))
    answers = [line[ANSWERS] for line in lines if line.get(ANSWERS) is not None]
    return {
        "before": held_out[0]["eval_reward"],
        "after": held_out[-1]["eval_reward"],
        "answers": answers[-1] - answers[0] if answers else float("nan"),
        "minutes": seconds / 60,
    }


def table(settings: list[str], seeds: list[int]) -> str:
    """Markdown, a row a setting: mean and spread (standard deviation over seeds) of the final score."""
    rows = ["| setting | changes | seeds | held-out score | gain | answers | minutes |", "| --- " * 7 + "|"]
    for setting in settings:
        found = [result for seed in seeds if (result := measured(setting, seed)) is not None]
        if not found:
            continue
        after = [result["after"] for result in found]
        spread = f" ± {100 * statistics.stdev(after):.1f}" if len(after) > 1 else ""
        means = {name: statistics.fmean(result[name] for result in found) for name in found[0]}
        rows.append(
            f"| {setting} | {' '.join(SETTINGS[setting]) or 'none'} | {len(found)} | "
            f"{100 * means['after']:.1f}%{spread} | {100 * (means['after'] - means['before']):+.1f} | "
            f"{100 * means['answers']:+.1f} | {means['minutes']:.1f} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=DEFAULT, help="default: %(default)s")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: %(default)s")
    parser.add_argument("--recipe", default="configs/tiny_5min.yaml", help="default: %(default)s")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and stop")
    arguments = parser.parse_args()
    if not arguments.table:
        for seed in arguments.seeds:  # a seed of every setting first, so that an early stop leaves a comparison
            for setting in arguments.settings:
                train(setting, seed, arguments.recipe)
    print(table(arguments.settings, arguments.seeds))


if __name__ == "__main__":
    main()
