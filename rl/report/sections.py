"""What each section of the page says of runs, as plain values for the template."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rl.config.grpo_config import flat
from rl.config.recipe import recipe_from_mapping
from rl.report.charts import Series, difference_bar, line_chart
from rl.report.paired import Comparison, Difference, compare_rows, interval, numbers_of
from rl.report.run_data import RunData, mean
from rl.run.curves import PLAIN_CURVES, expert_curves, held_out_sets, phases, reward_curves, series
from rl.run.records import scores_in
from uniar.reading.yaml_files import dump_yaml
from uniar.shareable import shareable


def first_to_last(run: RunData) -> Comparison | None:
    """None where the run has not been evaluated twice on the same samples."""
    if len(run.steps) < 2:
        return None
    first, last = run.steps[0], run.steps[-1]
    return compare_rows(run.evaluations[first], run.evaluations[last], (f"update {first}", f"update {last}"))


def verdict(run: RunData, found: Comparison | None) -> dict[str, Any]:
    """Section 1."""
    facts: list[tuple[str, str]] = []
    total = None if found is None else found.total
    if run.evaluations and total is None:
        scores = numbers_of(run.evaluations[list(run.evaluations)[-1]], "total")
        scores = scores[~np.isnan(scores)]
        if len(scores):
            low, high = interval(scores)
            facts.append(("held-out total", f"{scores.mean():.4f} ({low:.4f} to {high:.4f})"))
    for key, name, unit in (("kl", "KL to the reference", "bit"), ("text/kl", "KL of texts", "token")):
        kl = mean([line.get(key) for line in run.training[-5:]])
        if kl is not None:
            facts.append((name, f"{kl:.2e} nats per {unit}{_began(run, key)}"))
    if answered := answers_kept(run):
        facts.append(("answers", answered))
    if run.seconds:
        facts.append(("time", duration(run.seconds)))
        processes = run.environment.get("processes")
        if run.environment.get("gpus") and isinstance(processes, int):
            facts.append(("GPU-hours", f"{processes * run.seconds / 3600:.3g}"))
    speed = mean([line.get("throughput/images_per_second") for line in run.training[-20:]])
    if speed is not None:
        facts.append(("images per second", f"{speed:.3g}"))
    memory = max((line.get("memory/peak_gb") or 0.0 for line in run.training), default=0.0)
    if memory:
        facts.append(("peak memory", f"{memory:.3g} GB"))
    return {"name": run.name, "state": state_of(run), "total": total, "facts": facts, "steps": run.steps}


def _began(run: RunData, key: str) -> str:
    """Why a KL was not 0 at the start, where it was not."""
    if key != "kl" or run.recipe is None or not run.recipe.reference_draws_otherwise:
        return ""
    first = next(line["kl"] for line in run.training if line.get("kl") is not None)
    return f"; it began at {first:.2e}, not 0, because algorithm.reference draws otherwise than rollouts"


def state_of(run: RunData) -> str:
    """Running with what is left, finished, or stopped."""
    if not run.training:
        return "an evaluation" if run.scores else "no update yet"
    of = f" of {run.planned}" if run.planned else ""
    if run.finished is not None:
        said = run.finished.get("said")
        return f"finished after update {run.updates}" + (f": {said}" if isinstance(said, str) else "")
    if run.running:
        left = f", about {duration(run.eta)} left" if run.eta else ""
        return f"running: update {run.updates}{of}{left}"
    return f"stopped after update {run.updates}{of}, not finished"


def answers_kept(run: RunData) -> str | None:
    """How many of the answers that were right at first still are."""
    if len(run.answers) < 1:
        return None
    first, last = (scores_in(run.answers[step]["exact_match"]) for step in (min(run.answers), max(run.answers)))
    if len(run.answers) < 2 or len(first) != len(last):
        return f"{sum(last) / len(last):.1%} right"
    right = sum(first)
    kept = sum(before == after == 1 for before, after in zip(first, last, strict=True))
    return f"{sum(first) / len(first):.1%} → {sum(last) / len(last):.1%} right; {kept:.0f} of {right:.0f} kept"


def duration(seconds: float) -> str:
    """In words: 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


# Curves --------------------------------------------------------------------------------------------------------------


def panels(runs: Sequence[RunData], opens: Sequence[int]) -> list[dict[str, Any]]:
    """Section 3: small charts, each with its legend. opens: the updates whose pictures are on the page."""
    found = []

    def add(title: str, drawn: list[Series]) -> None:
        if chart := line_chart(title, drawn):
            legend = list(dict.fromkeys((one.label, one.colour) for one in drawn if len(one.x)))
            found.append({"title": title, "chart": chart, "legend": legend if len(legend) > 1 else []})

    alone = len(runs) == 1
    pairs = dict.fromkeys(pair for run in runs for pair in reward_curves(run.lines))
    for training, held_out, title in pairs:
        drawn = [_curve(run, training, "training" if alone else run.name, n) for n, run in enumerate(runs)]
        tested = [
            _points(run, held_out, "held-out" if alone else run.name, n + alone, opens if alone else ())
            for n, run in enumerate(runs)
        ]
        if alone and not runs[0].otherwise:
            add(title, [*drawn, *tested])
        else:
            add(f"{title}, training", drawn)
            add(f"{title}, held-out" + (f" ({runs[0].otherwise})" if alone and runs[0].otherwise else ""), tested)
    for name in dict.fromkeys(name for run in runs for name in held_out_sets(run.lines)):
        key = f"eval_{name}/reward"
        add(
            f"total of {name}, held-out",
            [_points(run, key, run.name, n + alone, opens if alone else ()) for n, run in enumerate(runs)],
        )
    for run in runs:
        for title, experts in expert_curves(run.lines).items():
            curves = [_curve(run, key, name, place) for place, (key, name) in enumerate(experts)]
            add(title if alone else f"{title}, {run.name}", curves)
    for key, title in PLAIN_CURVES:
        if key.startswith("eval_"):
            add(title, [_points(run, key, run.name, n + alone, opens if alone else ()) for n, run in enumerate(runs)])
        else:
            add(title, [_curve(run, key, run.name, n) for n, run in enumerate(runs)])
    for run in runs:
        curves = [
            _curve(run, key, key.removeprefix("seconds/"), place) for place, key in enumerate(phases(run.training))
        ]
        add("seconds per update" if alone else f"seconds per update, {run.name}", curves)
    add(
        "held-out questions, share right",
        [_points(run, "eval_understanding/exact_match", run.name, n, ()) for n, run in enumerate(runs)],
    )
    return found


def _curve(run: RunData, key: str, label: str, colour: int) -> Series:
    return Series(label, *series(run.training, key), colour)


def _points(run: RunData, key: str, label: str, colour: int, opens: Sequence[int]) -> Series:
    x, y = series(run.lines, key)
    errors = dict(zip(*series(run.lines, f"{key}_se"), strict=True))
    errors_of = [1.96 * errors.get(step, 0.0) for step in x]
    return Series(label, x, y, colour, dots=True, errors=errors_of, opens=[step in opens for step in x])


# Tables --------------------------------------------------------------------------------------------------------------


def tables(found: Comparison) -> list[dict[str, Any]]:
    """Section 4: rows with bars."""
    parts = [("score", [*([found.total] if found.total else []), *found.rewards])]
    parts += [("by set", found.by_set), ("by task", found.by_task), ("by skill", found.by_tag)]
    return [{"title": title, "rows": _with_bars(rows)} for title, rows in parts if rows]


def _tone(one: Difference) -> str:
    return "up" if one.better else "down" if one.worse else "even"


def _with_bars(rows: Sequence[Difference]) -> list[dict[str, Any]]:
    ends = [abs(end) for one in rows for end in (one.low, one.high, one.gain) if not math.isnan(end)]
    span = max(ends, default=1.0)
    return [{"one": one, "bar": difference_bar(one.low, one.gain, one.high, span, _tone(one))} for one in rows]


# How to reproduce ----------------------------------------------------------------------------------------------------


def reproduction(run: RunData) -> dict[str, Any]:
    """Section 9: the command, what the recipe sets otherwise than the defaults, versions, and the whole recipe."""
    settings = run.settings
    changed = {}
    if run.recipe is not None:
        needed = {"model": {"path": "-"}, "data": {"prompts": "-"}, "rewards": [{"use": "-"}]}
        defaults = flat(recipe_from_mapping(needed).to_mapping())
        changed = {key: value for key, value in settings.items() if defaults.get(key, "") != value}
    config = dump_yaml(shareable(run.recipe.to_mapping())) if run.recipe is not None else None
    environment = shareable(run.environment)
    return {
        "name": run.name,
        "command": environment.get("command"),
        "facts": _machine(environment),
        "changed": changed,
        "config": config,
    }


def _machine(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What environment.json says, as far as it is as a run writes it."""
    facts = [("processes", str(environment["processes"]))] if "processes" in environment else []
    cpu, gpus, packages = (environment.get(name) for name in ("cpu", "gpus", "versions"))
    if isinstance(cpu, dict):
        facts.append(("CPU", f"{cpu.get('name')}, {cpu.get('cores')} cores, {cpu.get('memory_gb')} GB"))
    names = [f"{gpu.get('name')}, {gpu.get('memory_gb')} GB" for gpu in gpus or () if isinstance(gpu, dict)]
    facts += [("GPU", f"{names.count(name)} × {name}") for name in dict.fromkeys(names)]
    return facts + ([(name, str(number)) for name, number in packages.items()] if isinstance(packages, dict) else [])


def different_settings(runs: Sequence[RunData]) -> list[tuple[str, list[str]]]:
    """The keys that runs set otherwise, and what each says."""
    flats = [run.settings for run in runs]
    keys = dict.fromkeys(key for one in flats for key in one if key != "output_dir")
    rows = [(key, [str(one.get(key, "–")) for one in flats]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]
