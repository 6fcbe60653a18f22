"""Which curves a run has, and how they are smoothed: the same for its plot and for its report."""

import math
from collections.abc import Sequence
from typing import Any

from rl.evaluation.evaluate import OWN_METRICS

PLAIN_CURVES = (
    ("kl", "KL to the reference, nats per bit"),
    ("entropy", "entropy, nats per bit"),
    ("text/kl", "KL to the reference, nats per token"),
    ("text/entropy", "entropy, nats per token"),
    ("frac_reward_zero_std", "groups without differences, share"),
    ("clip_ratio/region_mean", "clipped bits, share"),
    ("eval_look/diversity", "diversity of held-out pictures"),
    ("eval_look/sharpness", "sharpness of held-out pictures"),
    ("eval_look/near_duplicates", "near-duplicates of other prompts, share"),
    ("grad_norm", "gradient norm"),
    ("learning_rate", "learning rate"),
    ("throughput/images_per_second", "images per second"),
    ("memory/peak_gb", "peak memory, GB"),
)
"""Key of a line of metrics.jsonl, and what a reader calls it."""

GUARDS_SAID = "eval_guards/said"
"""Key of a line of metrics.jsonl: what the run said of the limits of watch.guards, a list of sentences."""


def reward_curves(lines: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Key of training, key of held-out samples, and name, of the total and of each reward. A single reward is the total
    itself where the two never differ."""
    keys = dict.fromkeys(key for line in lines for key in line)
    trained = [key[8:-5] for key in keys if key.startswith("rewards/") and key.endswith("/mean")]
    held_out = [key[5:] for key in keys if key.startswith("eval_") and "/" not in key and key[5:] not in OWN_METRICS]
    names = list(dict.fromkeys([*trained, *held_out]))
    curves = [(f"rewards/{name}/mean", f"eval_{name}", name) for name in names]
    if len(curves) == 1 and all(
        series(lines, one) == series(lines, total)
        for one, total in zip(curves[0][:2], ("reward", "eval_reward"), strict=True)
    ):
        curves = []
    return [("reward", "eval_reward", "total"), *curves]


def expert_curves(lines: Sequence[dict[str, Any]]) -> dict[str, list[tuple[str, str]]]:
    """Title → key and expert of the KL divergences from experts, where the run is a distillation."""
    found: dict[str, list[tuple[str, str]]] = {}
    for key in dict.fromkeys(key for line in lines for key in line if key.startswith("distill/")):
        name = key.removeprefix("distill/").removesuffix("/kl")
        unit = "token" if name.endswith("/text") else "bit"
        found.setdefault(f"KL to experts, nats per {unit}", []).append((key, name.removesuffix("/text")))
    return found


def held_out_sets(lines: Sequence[dict[str, Any]]) -> list[str]:
    """The names of held-out sets that lines have scores of."""
    keys = dict.fromkeys(key for line in lines for key in line)
    return [key[5:-7] for key in keys if key.startswith("eval_") and key.endswith("/reward")]


def phases(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Keys of the seconds that each phase of an update took."""
    return list(dict.fromkeys(key for line in lines for key in line if key.startswith("seconds/")))


def series(lines: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Updates and values under a key, without those that are not finite numbers."""
    kept = [line for line in lines if isinstance(line.get(key), int | float) and math.isfinite(line[key])]
    return [line["step"] for line in kept], [line[key] for line in kept]


def rise(values: Sequence[float]) -> tuple[float, float] | None:
    """By how much the mean of the last quarter is above that of the first, and the standard error of a mean of so many
    values; None for fewer than four."""
    if len(values) < 4:
        return None
    part, average = len(values) // 4, sum(values) / len(values)
    spread = (sum((value - average) ** 2 for value in values) / (len(values) - 1) / part) ** 0.5
    return (sum(values[-part:]) - sum(values[:part])) / part, spread


def smoothed(values: Sequence[float]) -> list[float]:
    """The mean of each value and its neighbours: a tenth of the curve."""
    reach = max(1, len(values) // 20)
    windows = (values[max(0, n - reach) : n + reach + 1] for n in range(len(values)))
    return [sum(window) / len(window) for window in windows]
