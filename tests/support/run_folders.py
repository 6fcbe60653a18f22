"""Folders as runs leave them, made of numbers and noise: no model is loaded."""

import functools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from rl.records.rows import COLUMNS, PREFIX, QUESTION_COLUMNS, encoded, write_rows, write_table
from rl.run.folder import RunFolder

HOSTILE = '</script><script>document.title = "gamed"</script><img src=x onerror="document.title=\'gamed\'">'
SKILLS = ("colors", "counting", "position")
RECIPE = """\
model: {path: somewhere}
data: {prompts: prompts.jsonl}
rewards: [{use: color, color: red}]
eval_rewards: [{use: color, color: red}, {use: sharpness, weight: 0}]
evaluate: {prompts: held_out.jsonl, every: 10}
trainer: {max_steps: 40, learning_rate: RATE}
"""


@functools.cache
def noise(seed: int, size: int) -> bytes:
    """A picture that compresses about as a photograph does."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8)
    return encoded(Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC), 90)


def rows_of(samples: int, scores: np.ndarray, *, seed: int = 1, pictures: int = 24, size: int = 64) -> pa.Table:
    """samples rows; scores: (samples,) of the reward color, which is the total. Sample 3's prompt, reason and text
    are HOSTILE; 4 wrote twice and drew, 5 only wrote, 6 edits a picture, 7 answers about one."""
    texts = {3: [HOSTILE], 4: ["it should be red", "now it is"], 5: ["there are two of them, side by side. " * 30]}
    texts[7] = ["it is blue"]
    prompts = [HOSTILE if n == 3 else f"a picture of thing {n}" for n in range(samples)]
    why = [
        HOSTILE if n == 3 else f"thing {n} is {'there' if score > 0.5 else 'missing'}" for n, score in enumerate(scores)
    ]
    columns = {
        "step": [0] * samples,
        "id": [f"prompt-{n}" for n in range(samples)],
        "sample": [0] * samples,
        "prompt": prompts,
        "task": ["draw"] * samples,
        "tag": [SKILLS[n % 3] for n in range(samples)],
        "set": [None] * samples,
        "episode": ["draw"] * samples,
        "texts": [texts.get(n, []) for n in range(samples)],
        "total": scores.tolist(),
        "advantage": [None] * samples,
        "details": [json.dumps({"color": {"why": said}}) for said in why],
        "seed": [seed * 1000 + n for n in range(samples)],
        "picture": [
            None if n in (5, 7) else noise(n % pictures + int(100 * one), size) for n, one in enumerate(scores)
        ],
        "source": [noise(1000 + n, size) if n in (6, 7) else None for n in range(samples)],
        f"{PREFIX}color": scores.tolist(),
        f"{PREFIX}sharpness": (1 - scores / 2).tolist(),
    }
    return pa.table({name: pa.array(values, COLUMNS.get(name, pa.float64())) for name, values in columns.items()})


def write_run(
    folder: Path, *, samples: int = 30, steps: int = 40, rise: float = 0.3, every: int = 10, **options
) -> RunFolder:
    """A finished run whose held-out score rises. options: as of `rows_of`."""
    run = RunFolder(folder)
    run.take()
    run.config.write_text(RECIPE.replace("RATE", f"{options.pop('rate', 1e-4)}"))
    generator = np.random.default_rng(0)
    chances = generator.random(samples)
    lines = []
    for step in range(steps + 1):
        if step:
            lines.append(
                {"step": step, "loss": 0.1, "reward": 0.4 + rise * step / steps + 0.02 * generator.standard_normal()}
                | {
                    "rewards/color/mean": 0.4,
                    "kl": 1e-4 * step,
                    "entropy": 0.6,
                    "frac_reward_zero_std": 0.6,
                    "grad_norm": 1.0,
                }
                | {"rewards/color/failed": 1.0, "seconds/rollout": 2.0, "seconds/update": 1.0}
                | {"throughput/images_per_second": 8.0, "memory/peak_gb": 3.5, "time": 1e9 + 4.0 * step}
            )
        if step % every:
            continue
        scores = (chances < 0.4 + rise * step / steps).astype(float)
        write_rows(run.rows(step), rows_of(samples, scores, **options), step)
        correct = [1.0, 0.0 if step else 1.0, 1.0 if step else 0.0, 1.0]
        answered = {
            "exact_match": correct,
            "p_answer": correct,
            "p_token": correct,
            "answers": ["yes", HOSTILE, "no", "red"],
        }
        content = {"total": scores.tolist(), "color": scores.tolist(), "understanding": answered}
        (run.evaluations / f"step-{step:06d}.json").write_text(json.dumps(content))
        lines.append(
            {"step": step, "eval_reward": scores.mean(), "eval_reward_se": 0.05, "eval_color": scores.mean()}
            | {"eval_sharpness": 0.5, "eval_excluded_samples": 0.0, "eval_understanding/exact_match": 0.75}
            | {"time": 1e9 + 4.0 * step + 2}
        )
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    questions = {
        "question": ["is it red?", HOSTILE, "how many?", "which colour?"],
        "answer": ["yes", "no", "two", "red"],
        "picture": [noise(n, 64) for n in range(4)],
    }
    kinds = QUESTION_COLUMNS
    write_table(
        run.evaluations / "questions.parquet", pa.table({n: pa.array(v, kinds[n]) for n, v in questions.items()})
    )
    for step in (1, steps):
        group = rows_of(8, np.linspace(0, 1, 8))
        group = group.set_column(1, "id", pa.array(["prompt-0"] * 4 + ["prompt-3"] * 4))
        taught = pa.array([-1.2, -0.4, 0.4, 1.2] * 2)
        write_rows(
            run.groups / f"step-{step:06d}.parquet",
            group.set_column(group.schema.get_field_index("advantage"), "advantage", taught),
            step,
        )
    run.environment.write_text(
        json.dumps({"command": "uniar-rl train mine.yaml", "processes": 8, "versions": {"torch": "2.13.0"}})
    )
    run.finished.write_text(json.dumps({"step": steps, "said": None, "files": {}}))
    return run
