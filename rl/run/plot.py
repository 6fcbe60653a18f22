"""The curves of a run's metrics as one picture of small panels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from rl.evaluation.understanding import ANSWER_SCORES
from rl.run.curves import PLAIN_CURVES, expert_curves, phases, reward_curves, series, smoothed
from uniar.reading.files import whole_file

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

COLUMNS = 4
"""even, so that training and held-out stand side by side"""
SMOOTHED_FROM = 12
"""points; fewer are drawn as they are"""
TRAINING, HELD_OUT = "tab:blue", "tab:red"

Lines = Sequence[dict[str, Any]]


def plot_metrics(lines: Lines, path: Path, held_out_as: str | None = None) -> None:
    """Writes a PNG of small panels over the updates: the total and each reward, of training and held-out samples, then
    what else `PLAIN_CURVES` names, the seconds of each phase and the held-out questions, each as far as the run has it.

    held_out_as: in what the held-out rewards are set otherwise than the training ones; each has a panel of its own
    then, and the picture says so at its foot. None: the two are comparable and share a panel.
    """
    keys = {key for line in lines for key in line if line[key] is not None}
    panels: list[tuple[str, list[tuple[str, str, str]]]] = []  # title; key, label and colour of each curve
    for trained, held_out, name in reward_curves(lines):
        training, tested = (trained, "training", TRAINING), (held_out, "held-out", HELD_OUT)
        if held_out_as and held_out in keys:
            panels += [(f"{name}, training", [training]), (f"{name}, held-out", [tested])]
        else:
            panels.append((name, [training, tested]))
    for title, experts in expert_curves(lines).items():
        panels.append((title, [(key, name, f"C{n}") for n, (key, name) in enumerate(experts)]))
    panels += [(title, [(key, "", HELD_OUT if key.startswith("eval_") else TRAINING)]) for key, title in PLAIN_CURVES]
    panels.append(
        ("seconds per update", [(key, key.partition("/")[2], f"C{n}") for n, key in enumerate(phases(lines))])
    )
    asked = [(f"eval_understanding/{key}", label, f"C{n}") for n, (key, label) in enumerate(ANSWER_SCORES.items())]
    panels.append(("held-out questions", asked))
    kept = [(title, [one for one in curves if one[0] in keys]) for title, curves in panels]
    kept = [panel for panel in kept if panel[1]] or [("total", [])]

    columns = min(COLUMNS, len(kept))
    rows = -(-len(kept) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.6 * columns, 2.4 * rows), layout="constrained", squeeze=False)
    for axis, (title, curves) in zip(axes.flat, kept, strict=False):
        _panel(axis, title, lines, curves)
    for axis in axes.flat[len(kept) :]:
        axis.set_visible(False)
    note = f"; held-out is set otherwise than training: {held_out_as}" if held_out_as and "eval_reward" in keys else ""
    figure.supxlabel(f"updates{note}", fontsize=9, color="#555555")
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, dpi=110, format="png")
    plt.close(figure)


def _panel(axis: Axes, title: str, lines: Lines, curves: Sequence[tuple[str, str, str]]) -> None:
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    axis.tick_params(labelsize=8)
    last = max([line["step"] for line in lines] + [1])
    axis.set_xlim(-0.02 * last, 1.02 * last)
    axis.locator_params(axis="x", integer=True)
    for key, label, colour in curves:
        steps, values = series(lines, key)
        if key.startswith("eval_"):
            found = dict(zip(*series(lines, f"{key}_se"), strict=True))
            errors = [found.get(step, 0.0) for step in steps] if found else None
            label = f"{label} ± s.e." if found else label
            axis.errorbar(steps, values, errors, color=colour, marker="o", ms=4, capsize=3, lw=1.2, label=label)
        elif len(values) < SMOOTHED_FROM:
            axis.plot(steps, values, color=colour, linewidth=1.4, label=label)
        else:
            axis.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3)
            axis.plot(steps, smoothed(values), color=colour, linewidth=1.6, label=label)
    if curves and curves[0][0].startswith("eval_understanding"):
        axis.set_ylim(-0.03, 1.03)
    if len(curves) > 1 and axis.has_data():
        axis.legend(fontsize=7, framealpha=0.6)
