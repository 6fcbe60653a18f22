"""How much a setting learns from a drawing, on UniAR-Tiny: whole runs over several seeds, and gradients alone.

    python -m benchmarks.learning runs --settings without both --seeds 0 1 2
    python -m benchmarks.learning runs --settings tiny_5min tiny_gspo tiny_lora --jobs 2
    python -m benchmarks.learning gradients --settings without_02 credit_02 --batches 40
    python -m benchmarks.learning table                           # of all that is there so far

A setting is a name below, which stands for overrides of configs/quickstart.yaml with twice its updates, or a recipe
of configs/.

`runs` trains each setting with each seed in a process of its own, into runs/learning/SETTING-SEED. A run that has ended
is not run again, one that was interrupted goes on. The seed changes rollouts and the order of prompts; held-out prompts
and their noise are the same, so all runs are paired with the same evaluation before training. `--jobs 2` runs two at a
time with a thread each.

`gradients` takes the gradient of the policy term over and over at the weights that training starts from, on the same
drawings for every setting. Its noise is what two gradients of different drawings do not share: their mean cosine is the
squared share of the signal in one. Beside it stands the cosine after Adam's division by each weight's root mean square,
and the same two between a setting's gradients and those of the first setting named, of other drawings: what a biased
setting has in common with the gradient of the reward.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CONFIGS, FOLDER = Path("configs"), Path("runs/learning")
RECIPE = "quickstart"
NO_REFERENCE = "algorithm.reference={guidance_scale: null, temperature: null}"
REFERENCE = "algorithm.reference={guidance_scale: 2.0, temperature: null}"
SETTINGS: dict[str, list[str]] = {
    "without": ["algorithm.credit=null", NO_REFERENCE, "algorithm.beta=0.05"],
    "without_02": ["algorithm.credit=null", NO_REFERENCE, "algorithm.beta=0.02"],
    "credit_02": ["algorithm.credit=prompt", NO_REFERENCE, "algorithm.beta=0.02"],
    "reference_02": ["algorithm.credit=null", REFERENCE, "algorithm.beta=0.02"],
    "both": ["algorithm.credit=prompt", REFERENCE, "algorithm.beta=0.02"],
}
ANSWERS = "eval_understanding/exact_match"
STEPS = (50, 75, 100, 150, 300)
LONG = ["trainer.max_steps=150", "trainer.learning_rate=2e-4"]
"""of the settings above: twice the quickstart's updates"""
SAMPLES, PROMPTS = 8, 120
"""of the evaluation that diversity is taken from"""
QUIET = ["evaluate.prompts=null", "understanding.questions=null", "records.groups_every=null"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["runs", "gradients", "table", "gradients-of"])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), help="default: %(default)s")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: %(default)s")
    parser.add_argument("--batches", type=int, default=40, help="gradients per setting, default: %(default)s")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, a thread each where it is above 1")
    arguments = parser.parse_args()
    for name in arguments.settings:
        if name not in SETTINGS and not (CONFIGS / f"{name}.yaml").is_file():
            parser.error(f"there is no setting or recipe {name!r}; the settings are {', '.join(SETTINGS)}.")
    FOLDER.mkdir(parents=True, exist_ok=True)
    if arguments.what == "gradients-of":
        (setting,) = arguments.settings
        keep_gradients(setting, arguments.batches)
        return
    if arguments.what == "runs":
        draw(FOLDER / "before", None, os.environ)  # once, before runs beside each other ask for it
        # A seed of every setting first, so that an early stop leaves a comparison.
        todo = [(name, seed) for seed in arguments.seeds for name in arguments.settings]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(lambda one: train(*one, 1 if arguments.jobs > 1 else None), todo))
    if arguments.what == "gradients":
        for name in arguments.settings:
            if not gradients_file(name, arguments.batches).exists():
                own = ["gradients-of", "--settings", name, "--batches", str(arguments.batches)]
                subprocess.run([sys.executable, "-m", "benchmarks.learning", *own], check=True)
        print(gradient_table(arguments.settings, arguments.batches))
        return
    print(run_table(arguments.settings, arguments.seeds))


def told(setting: str) -> list[str]:
    """The recipe of a setting and its overrides, as a command line has them."""
    if setting in SETTINGS:
        return [str(CONFIGS / f"{RECIPE}.yaml"), *LONG, *SETTINGS[setting]]
    return [str(CONFIGS / f"{setting}.yaml")]


# Runs ----------------------------------------------------------------------------------------------------------------


def run_folder(setting: str, seed: int) -> Path:
    return FOLDER / f"{setting}-{seed}"


def train(setting: str, seed: int, threads: int | None) -> None:
    """Runs or goes on with one run, then draws what diversity is taken from. Raises CalledProcessError where it
    fails."""
    output, (recipe, *overrides) = run_folder(setting, seed), told(setting)
    environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    if not (output / "final").is_dir():
        own = [f"seed={seed}", f"output_dir={output}", "resume=auto", "trainer.save_steps=50", "evaluate.every=50"]
        print(f"--- {setting}, seed {seed}", flush=True)
        command = [sys.executable, "-m", "rl.train", recipe, *overrides, *own]
        subprocess.run(command, check=True, env=environment)
    draw(output / "drawn", output / "final", environment)


def draw(drawn: Path, model: Path | None, environment: Mapping[str, str]) -> None:
    """What diversity is taken from, by the recipe's own model without another, where it is not there in whole."""
    if is_drawn(drawn):
        return
    own = [f"evaluate.samples_per_prompt={SAMPLES}", f"evaluate.limit={PROMPTS}", "understanding.questions=null"]
    command = [sys.executable, "-m", "rl.cli", "evaluate", str(CONFIGS / f"{RECIPE}.yaml"), *own]
    named = [] if model is None else ["--model", str(model)]
    subprocess.run([*command, *named, "--output", str(drawn)], check=True, env=environment)


def is_drawn(folder: Path) -> bool:
    """Whether an evaluation has ended there: it makes its folder first, and writes rows last."""
    return any((folder / "evaluations").glob("step-*.parquet"))


def measured(setting: str, seed: int) -> dict[str, float] | None:
    """What a run came to; None for one that has not ended."""
    output = run_folder(setting, seed)
    if not is_drawn(output / "drawn"):
        return None
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    held_out = {line["step"]: line["eval_reward"] for line in lines if "eval_reward" in line}
    answers = [line[ANSWERS] for line in lines if line.get(ANSWERS) is not None]
    updates = [line for line in lines if "reward" in line]
    drawings = sum(line["throughput/images"] for line in updates)
    seconds = sum(value for line in updates for name, value in line.items() if name.startswith("seconds/"))
    gain = held_out[max(held_out)] - held_out[min(held_out)]
    return {
        **{f"at {step}": held_out[step] for step in STEPS if step in held_out},
        "gain": gain,
        "informative": statistics.fmean(1 - line["frac_reward_zero_std"] for line in updates),
        "per_1000": 1000 * gain / drawings,
        "per_minute": 60 * gain / seconds,
        "answers": answers[-1] - answers[0],
        "kl": statistics.fmean(line["kl"] for line in updates[-10:]),
        "diversity": diversity_kept(FOLDER / "before", output / "drawn"),
        "minutes": seconds / 60,
    }


def diversity_kept(before: Path, after: Path) -> float:
    """The `diversity` after training over that before, of the captions that have one both times."""
    one, two = diversity(before), diversity(after)
    shared = one.keys() & two.keys()
    return sum(two[caption] for caption in shared) / sum(one[caption] for caption in shared)


def diversity(drawn: Path) -> dict[str, float]:
    """Caption → how different its right drawings are, where it has several: the mean absolute difference of their
    pixels, 0 to 1, over all pairs. Wrong drawings are left out: not to follow captions is not diversity."""
    from rl.report.evaluations import named_rows
    from rl.report.paired import numbers_of

    _, rows = named_rows(drawn)
    right = numbers_of(rows, "total") > 0.999
    by_caption: dict[str, list[np.ndarray]] = defaultdict(list)
    for caption, picture, is_right in zip(rows["prompt"].to_pylist(), rows["picture"].to_pylist(), right, strict=True):
        if is_right:
            image = Image.open(io.BytesIO(picture)).convert("RGB")
            by_caption[caption].append(np.asarray(image, np.float64) / 255)
    return {
        caption: statistics.fmean(np.abs(one - other).mean() for place, one in enumerate(of) for other in of[:place])
        for caption, of in by_caption.items()
        if len(of) > 1
    }


def run_table(settings: Sequence[str], seeds: Sequence[int]) -> str:
    """Markdown, a row per setting: means over seeds, and the standard deviation of the last score."""
    head = ["setting", "seeds", *(f"at {step}" for step in STEPS), "gain", "informative groups"]
    head += ["gain per 1,000 drawings", "per minute", "answers", "KL", "diversity of right drawings", "minutes"]
    rows = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for setting in settings:
        found = [result for seed in seeds if (result := measured(setting, seed)) is not None]
        if not found:
            continue
        mean = {name: statistics.fmean(result[name] for result in found) for name in found[0]}
        spread = f" ± {100 * statistics.stdev(result['gain'] for result in found):.1f}" if len(found) > 1 else ""
        cells: list[Any] = [setting, len(found)]
        cells += [f"{100 * mean[key]:.1f}%" if (key := f"at {step}") in mean else "" for step in STEPS]
        cells += [f"{100 * mean['gain']:+.1f}{spread}", f"{100 * mean['informative']:.0f}%"]
        cells += [f"{100 * mean['per_1000']:.2f}", f"{100 * mean['per_minute']:.1f}", f"{100 * mean['answers']:+.1f}"]
        cells += [f"{mean['kl']:.4f}", f"{100 * mean['diversity']:.0f}%", f"{mean['minutes']:.1f}"]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


# Gradients -----------------------------------------------------------------------------------------------------------


def gradients_file(setting: str, batches: int) -> Path:
    return FOLDER / f"gradients-{setting}-{batches}.pt"


def keep_gradients(setting: str, batches: int) -> None:
    """Trains at a learning rate that moves nothing, and writes the gradient of each update, (batches, weights)
    float32."""
    import rl.train
    from rl.config.recipe import load_recipe

    kept: list[Tensor] = []

    class Keeping(rl.train.UniARTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            loss = super().training_step(*args, **kwargs)
            grads = [weight.grad for weight in self.trained_parameters().values() if weight.grad is not None]
            kept.append(torch.cat([grad.flatten() for grad in grads]))
            print(f"{setting}: gradient {len(kept)} of {batches}", flush=True)
            return loss

    rl.train.UniARTrainer = Keeping  # type: ignore[misc]
    recipe, *overrides = told(setting)
    own = [
        f"trainer.max_steps={batches}",
        "trainer.learning_rate=1e-30",
        "trainer.save_strategy=no",
        "algorithm.beta=0",
        "algorithm.num_iterations=1",  # a rollout per gradient: others would share their drawings
        "trainer.gradient_accumulation_steps=1",
        "trainer.steps_per_generation=1",
    ]
    own += [f"output_dir={FOLDER}/gradients-{setting}-{batches}", NO_REFERENCE, *QUIET]
    rl.train.train(load_recipe(recipe, [*overrides, *own]))
    torch.save(torch.stack(kept), gradients_file(setting, batches))


def gradient_table(settings: Sequence[str], batches: int) -> str:
    """Markdown, a row per setting: mean cosines × 1000, and the standard error over batches."""
    head = ["setting", "with its own", "after Adam", f"with {settings[0]}'s", "after Adam", "norm"]
    rows = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    first = _both_forms(settings[0], batches)
    for setting in settings:
        own = _both_forms(setting, batches)
        cells = [_cosine(one, one) for one in own] + [
            _cosine(one, other) for one, other in zip(own, first, strict=True)
        ]
        norm = float(own[0].norm(dim=1).mean() / first[0].norm(dim=1).mean())
        rows.append("| " + " | ".join([setting, *cells, f"{norm:.2f}"]) + " |")
    return "\n".join(rows)


def _both_forms(setting: str, batches: int) -> tuple[Tensor, Tensor]:
    """A setting's gradients, and each divided by the root mean square of all, weight by weight, as Adam does."""
    raw = torch.load(gradients_file(setting, batches), weights_only=True)
    return raw, raw / raw.square().mean(0).sqrt().clamp(min=1e-30)


def _cosine(one: Tensor, other: Tensor) -> str:
    """Between gradients of different drawings, three batches or more, and the standard error."""
    norms = one.norm(dim=1)[:, None] * other.norm(dim=1)[None]
    cosines = ((one @ other.T) / norms).double()
    count = len(one)
    pairs = cosines.fill_diagonal_(0)
    mean = pairs.sum() / (count * (count - 1))
    # Each batch is in a row and in a column, so rows are no sample of their mean: the jackknife leaves out a batch's
    # row and column together.
    without = (pairs.sum() - pairs.sum(0) - pairs.sum(1)) / ((count - 1) * (count - 2))
    error = ((count - 1) / count * (without - without.mean()).square().sum()).sqrt()
    return f"{1000 * mean:.1f} ± {1000 * error:.1f}"


if __name__ == "__main__":
    main()
