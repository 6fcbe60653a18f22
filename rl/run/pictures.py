"""The pictures of a run: grids of samples with their rewards, and the curves of its metrics."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from rl.evaluation.understanding import ANSWER_SCORES
from uniar.reading.files import whole_file

matplotlib.use("Agg")
from matplotlib import pyplot as plt

TILE, MARGIN, LINE = 192, 8, 16


def sample_grid(
    tiles: Sequence[tuple[Image.Image, str, float]], path: Path, notes: Sequence[str] | None = None
) -> None:
    """Writes a PNG: each tile an image, its reward and the prompt under it (cut to two lines), and where `notes` says
    something about any of them, that (cut to three)."""
    # About as wide as high: a tile with its text is half as high again as wide.
    columns = min(max(4, round(math.sqrt(1.5 * len(tiles)))), max(len(tiles), 1))
    rows = math.ceil(len(tiles) / columns)
    notes = notes if notes and any(notes) else [""] * len(tiles)
    cell_w, cell_h = TILE + MARGIN, TILE + (3 + 3 * any(notes)) * LINE + MARGIN
    sheet = Image.new("RGB", (columns * cell_w + MARGIN, rows * cell_h + MARGIN), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, (image, prompt, reward) in enumerate(tiles):
        x, y = MARGIN + number % columns * cell_w, MARGIN + number // columns * cell_h
        # Small images are enlarged without smoothing, so that what the decoder drew stays visible.
        small = max(image.size) < TILE
        scale = TILE / max(image.size)
        size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
        shown = image.resize(size, Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)
        sheet.paste(shown, (x + (TILE - size[0]) // 2, y + (TILE - size[1]) // 2))
        score = "no reward" if math.isnan(reward) else f"{reward:.3f}"
        for row, line in enumerate([score, *_wrap(prompt, font, TILE, lines=2)]):
            pen.text((x, y + TILE + row * LINE), line, fill="black" if row == 0 else "#555555", font=font)
        for row, line in enumerate(_wrap(notes[number], font, TILE, lines=3), start=3):
            pen.text((x, y + TILE + row * LINE), line, fill="#888888", font=font)
    path.parent.mkdir(exist_ok=True)
    with whole_file(path) as unfinished:
        sheet.save(unfinished, format="PNG")


def _wrap(text: str, font: Any, width: int, lines: int) -> list[str]:
    out, rest = [], " ".join(text.split())
    while rest and len(out) < lines:
        end = len(rest)
        while (
            end > 1 and font.getlength(rest[:end] + ("…" if end < len(rest) and len(out) == lines - 1 else "")) > width
        ):
            end -= 1
        cut = rest.rfind(" ", 0, end + 1) if end < len(rest) else end
        end = cut if cut > 0 and len(out) < lines - 1 else end
        out.append(rest[:end].strip() + ("…" if end < len(rest) and len(out) == lines - 1 else ""))
        rest = rest[end:].strip()
    return out


CURVES = (("reward", "reward"), ("kl", "KL to the reference (nats per bit)"), ("entropy", "entropy (nats per bit)"))


def plot_metrics(lines: Sequence[dict[str, Any]], path: Path, held_out_as: str | None = None) -> None:
    """Writes a PNG with the reward (training and held-out), KL and entropy over the steps, and where held-out questions
    were asked, how they were answered.

    held_out_as: in what the held-out reward is set otherwise than the training one; such a one has a panel of its own,
    which says so. None: the two are comparable and share a panel.
    """
    held_out = [line for line in lines if line.get("eval_reward") is not None]
    asked = any(line.get("eval_understanding/exact_match") is not None for line in lines)
    apart = bool(held_out and held_out_as)
    panels = [(key, "training reward" if apart and key == "reward" else title) for key, title in CURVES]
    # Of three panels or more the second: beside the training reward.
    panels[1:1] = [("eval_reward", f"held-out reward, set otherwise:\n{held_out_as}")] * apart
    panels += [("eval_understanding", "held-out questions")] * asked
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.2), layout="constrained")
    for axis, (key, title) in zip(axes, panels, strict=True):
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("update")
        axis.grid(alpha=0.3)
        if key == "eval_understanding":
            for score, label in ANSWER_SCORES.items():
                axis.plot(*_series(lines, f"{key}/{score}"), marker="o", linewidth=1.2, label=label)
            axis.set_ylim(-0.03, 1.03)
        elif key != "eval_reward":
            axis.plot(*_series(lines, key), color="tab:blue", linewidth=1.2, label="training rollouts")
        if key == "eval_reward" or (key == "reward" and held_out and not apart):
            steps, means = _series(held_out, "eval_reward")
            errors = [line.get("eval_reward_se") or 0.0 for line in held_out]
            axis.errorbar(steps, means, yerr=errors, color="tab:red", marker="o", capsize=3, label="held-out ± s.e.")
        if key in ("reward", "eval_reward", "eval_understanding") and axis.has_data():
            axis.legend(fontsize=8)
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, dpi=110, format="png")
    plt.close(figure)


def _series(lines: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]
