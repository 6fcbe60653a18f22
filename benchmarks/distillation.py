"""Two experts and a student of UniAR-Tiny against one run on both skills: held-out scores by skill, several seeds.

    python benchmarks/distillation.py                       # three seeds: two to three hours on one core
    python benchmarks/distillation.py --seeds 0 --expert-updates 30 --student-updates 30
    python benchmarks/distillation.py --table               # what is there so far

For each seed, into runs/distillation/NAME-SEED, each a process of its own: an expert of `position`, an expert of
`colors` and `color_attr`, a student towards both (configs/tiny_distill.yaml), and one run on the prompts and rewards of
both for as many updates as the three together. A run that has ended is not run again, one that was interrupted goes on;
other numbers of updates need another --folder. All start from UniAR-Tiny and see the same held-out captions with the
same noise, so scores are paired; those of the start are of a run of `uniar-rl evaluate`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as parquet

BASE, STUDENT = "configs/quickstart.yaml", "configs/tiny_distill.yaml"
SKILLS = {"position": ["position"], "colors": ["colors", "color_attr"]}
TAGS = [tag for tags in SKILLS.values() for tag in tags]
RUNS = ("start", *(f"expert of {name}" for name in SKILLS), "student", "one run on both")


def run(folder: Path, command: str, recipe: str, *overrides: str, threads: int) -> None:
    """One run from its start or from where it was; nothing where it has ended. Raises CalledProcessError where it
    fails."""
    if (folder / "final").is_dir():
        return
    print(f"--- {folder}", flush=True)
    given = [*overrides, f"output_dir={folder}", "resume=auto", "evaluate.at_start=false", "evaluate.every=null"]
    given += ["understanding.questions=null", "trainer.save_steps=10", "trainer.save_total_limit=1"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run([sys.executable, "-m", "rl.cli", command, recipe, *given], check=True, env=environment)


def seed_runs(folder: Path, seed: int, arguments: argparse.Namespace) -> None:
    """All runs of one seed."""
    numbers = (arguments.expert_updates, arguments.student_updates)
    together = len(SKILLS) * numbers[0] + numbers[1]
    rate = [*arguments.overrides, f"seed={seed}"]

    def tagged(tags: list[str], updates: int) -> list[str]:
        return [f"data.tags=[{', '.join(tags)}]", f"trainer.max_steps={updates}", *rate]

    threads = arguments.threads
    for name, tags in SKILLS.items():
        run(folder / f"{name}-{seed}", "train", BASE, *tagged(tags, numbers[0]), threads=threads)
    experts = [
        f"distill.experts.{tag}.path={folder / f'{name}-{seed}' / 'final'}" for name in SKILLS for tag in SKILLS[name]
    ]
    run(folder / f"student-{seed}", "distill", STUDENT, *tagged(TAGS, numbers[1]), *experts, threads=threads)
    run(folder / f"both-{seed}", "train", BASE, *tagged(TAGS, together), threads=threads)


def start(folder: Path, arguments: argparse.Namespace) -> None:
    """UniAR-Tiny as it is."""
    if (folder / "start" / "scores.json").is_file():
        return
    command = [sys.executable, "-m", "rl.cli", "evaluate", BASE, "understanding.questions=null", *arguments.overrides]
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
    subprocess.run([*command, "--output", str(folder / "start")], check=True, env=environment)


def scores(folder: Path) -> dict[str, float] | None:
    """Mean held-out score of each skill, and of the captions of all other skills, by the last evaluation of a folder;
    None where there is none."""
    files = sorted((folder / "evaluations").glob("step-*.parquet"))
    if not files:
        return None
    rows = parquet.read_table(files[-1], columns=["tag", "total"])
    pairs = list(zip(rows["tag"].to_pylist(), rows["total"].to_pylist(), strict=True))
    found = {name: [total for tag, total in pairs if tag in tags] for name, tags in SKILLS.items()}
    found["both"] = [total for tag, total in pairs if tag in TAGS]
    found["others"] = [total for tag, total in pairs if tag not in TAGS]
    return {name: statistics.fmean(totals) for name, totals in found.items()}


def minutes(folder: Path) -> float:
    """Of training alone."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return sum(value for line in lines for name, value in line.items() if name.startswith("seconds/")) / 60


def table(folder: Path, seeds: list[int]) -> str:
    """Markdown, a row per run: mean held-out scores over the seeds that have all runs, and their spread (standard
    deviation)."""
    names = dict(zip(RUNS[1:], (*SKILLS, "student", "both"), strict=True))
    whole = [seed for seed in seeds if all((folder / f"{name}-{seed}" / "final").is_dir() for name in names.values())]
    heads = ["run", "updates", "seeds", *SKILLS, "both", "other skills", "minutes"]
    rows = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    if (found := scores(folder / "start")) is not None:
        rows.append(f"| {RUNS[0]} | 0 | | {' | '.join(f'{100 * value:.1f}%' for value in found.values())} | |")
    for title, name in names.items():
        runs = [folder / f"{name}-{seed}" for seed in whole]
        each = [found for one in runs if (found := scores(one)) is not None]
        if not each:
            continue
        cells = []
        for key in each[0]:
            values = [100 * found[key] for found in each]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.1f}%{spread}")
        updates = json.loads((runs[0] / "final.json").read_text())["step"]
        spent = statistics.fmean(minutes(one) for one in runs)
        rows.append(f"| {title} | {updates} | {len(each)} | {' | '.join(cells)} | {spent:.1f} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", default=[], metavar="key.sub=value", help="of all recipes")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: %(default)s")
    parser.add_argument("--expert-updates", type=int, default=100, help="of each expert; default: %(default)s")
    parser.add_argument("--student-updates", type=int, default=50, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="of each run; default: %(default)s")
    parser.add_argument("--folder", type=Path, default=Path("runs/distillation"), help="default: %(default)s")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and stop")
    arguments = parser.parse_args()
    if not arguments.table:
        start(arguments.folder, arguments)
        for seed in arguments.seeds:
            seed_runs(arguments.folder, seed, arguments)
            print(table(arguments.folder, arguments.seeds), flush=True)
    print(table(arguments.folder, arguments.seeds))


if __name__ == "__main__":
    main()
