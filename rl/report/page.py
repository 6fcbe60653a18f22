"""The page: one HTML file with all that it shows inside. Nothing is fetched, and a policy in its head forbids it."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rl.config.evaluation_sets import sets_of, trained_rewards
from rl.evaluation.look import look_at
from rl.records.rows import PREFIX, reward_names
from rl.report.charts import cloud_chart
from rl.report.paired import Comparison, compare_rows, numbers_of, paired_rows
from rl.report.pictures import BUDGET, PictureStore
from rl.report.run_data import RunData, read_run, shown_json
from rl.report.samples import flipped_questions, gallery, training_groups
from rl.report.sections import (
    different_settings,
    duration,
    first_to_last,
    panels,
    reproduction,
    tables,
    verdict,
)
from rl.report.warnings import warnings_of
from uniar.errors import UserError
from uniar.reading.files import write_whole

Side = tuple[str, int, pa.Table]


def write_report(paths: Sequence[Path], target: Path, *, running: bool | None = None) -> None:
    """Writes the page of one run, or of several compared, whole or not at all. running: see `read_run`. Raises
    UserError for a folder that is not a run's, and OSError as writing does."""
    write_whole(target, render([read_run(path, running=running) for path in paths]))


def render(runs: Sequence[RunData], budget: int = BUDGET) -> str:
    """The page of one run, or of several compared. budget: bytes that its pictures may take."""
    store = PictureStore()
    alone = runs[0] if len(runs) == 1 else None
    gains = [first_to_last(run) for run in runs]
    sides, unpaired = _sides(runs)
    shown = gallery(sides, store)
    compared = _compared(runs, gains)
    context: dict[str, Any] = {
        "title": " and ".join(run.name for run in runs),
        "alone": alone is not None,
        "trained": not all(run.scores for run in runs),  # an evaluation has no updates to draw curves over
        "verdicts": [verdict(run, gain) for run, gain in zip(runs, gains, strict=True)],
        "warnings": [
            (run.name, sentence)
            for run, gain in zip(runs, gains, strict=True)
            for sentence in warnings_of(run, None if gain is None else gain.total)
        ],
        "panels": panels(runs, [step for _, step, _ in sides] if alone else ()),
        "compared": compared,
        "settings": [] if alone else different_settings(runs),
        "names": [run.name for run in runs],
        "unpaired": unpaired,
        "gallery": shown,
        "lens": _lens(runs[0], sides),
        "groups": [(run.name, training_groups(run, store)) for run in runs if run.groups],
        "questions": [(run.name, found) for run in runs if (found := flipped_questions(run, store)) is not None],
        "reproduction": [reproduction(run) for run in runs],
        "duration": duration,
    }
    context["data"] = Markup(shown_json({**shown, "pictures": store.fitted(budget)}))
    return _template().render(context)


def _sides(runs: Sequence[RunData]) -> tuple[list[Side], str | None]:
    """What the gallery shows beside each other, rows in one order: of one run its first, best and last evaluation, of
    several the last of each. Also why they could not be paired; then the first run's alone are shown."""
    if len(runs) > 1:
        last = [(run.name, run.steps[-1], run.picture_rows(run.steps[-1])) for run in runs if run.steps]
        try:
            return _in_order(last), None
        except UserError as error:
            found, _ = _sides(runs[:1])
            return found, str(error)
    run = runs[0]
    if not run.steps:
        return [], None
    steps = sorted({run.steps[0], run.best if run.best is not None else run.steps[0], run.steps[-1]})
    labels = {
        step: f"update {step}" + (", the best" if step == run.best and len(run.steps) > 1 else "") for step in steps
    }
    return _in_order([(labels[step], step, run.picture_rows(step)) for step in steps]), None


def _in_order(sides: Sequence[Side]) -> list[Side]:
    if not sides:
        return []
    first_label, first_step, first = sides[0]
    found = [(first_label, first_step, paired_rows(first, first)[0])]
    for label, step, rows in sides[1:]:
        found.append((label, step, paired_rows(first, rows, (first_label, label))[1]))
    return found


def _compared(runs: Sequence[RunData], gains: Sequence[Comparison | None]) -> list[dict[str, Any]]:
    """Tables of the first evaluation against the last, or of the first run's last against each other's."""
    if len(runs) == 1:
        found = gains[0]
        names = (f"update {runs[0].steps[0]}", f"update {runs[0].steps[-1]}") if found else ("", "")
        return [{"names": names, "tables": tables(found), "error": None, "worse": False}] if found else []
    parts = []
    first = runs[0]
    for run in runs[1:]:
        names = (first.name, run.name)
        if not first.steps or not run.steps:
            continue
        try:
            found = compare_rows(first.evaluations[first.steps[-1]], run.evaluations[run.steps[-1]], names)
            parts.append({"names": names, "tables": tables(found), "error": None, "total": found.total})
        except UserError as error:
            parts.append({"names": names, "tables": [], "error": str(error), "total": None})
    return parts


def _lens(run: RunData, sides: Sequence[Side]) -> dict[str, Any] | None:
    """Section 6; None without pictures."""
    looks = [(label, asdict(look)) for label, _, rows in sides if (look := look_at(rows)) is not None]
    if not looks:
        return None
    first, last = sides[0][2], sides[-1][2]
    names, used = reward_names(last), set()
    if run.recipe is not None:
        used = {name for own in sets_of(run.recipe).values() for name in trained_rewards(own)}
    trained, others = [name for name in names if name in used], [name for name in names if name not in used]
    chart = Markup()
    if trained and others and len(sides) > 1:
        gains = [
            numbers_of(last, f"{PREFIX}{name}") - numbers_of(first, f"{PREFIX}{name}")
            for name in (trained[0], others[0])
        ]
        points = [(float(x), float(y), n) for n, (x, y) in enumerate(zip(*gains, strict=True)) if x == x and y == y]
        chart = cloud_chart("gains by sample", f"gain in {trained[0]}", f"gain in {others[0]}", points)
    column = f"{PREFIX}{trained[0]}" if trained else "total"
    top = top_share(last[column].to_pylist())
    return {
        "looks": looks,
        "trained": trained,
        "others": others,
        "chart": chart,
        "top": top,
        "by": column.removeprefix(PREFIX),
    }


def top_share(values: Sequence[float | None], share: float = 0.01, least: int = 6) -> list[int]:
    """The places of the largest, so large a share of them, best first."""
    there = [place for place, value in enumerate(values) if value is not None]
    return sorted(there, key=lambda place: -values[place])[: max(least, round(share * len(there)))]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("rl.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["signed"] = lambda value: f"{value:+.4f}".replace("-", "−")
    return environment


def _template() -> Any:
    environment = _environment()
    parts = {name: environment.loader.get_source(environment, name)[0] for name in ("page.css", "page.js")}
    digest = base64.b64encode(hashlib.sha256(parts["page.js"].encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    environment.globals |= {"css": Markup(parts["page.css"]), "js": Markup(parts["page.js"]), "policy": policy}
    return environment.get_template("page.html")
