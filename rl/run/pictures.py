"""Grids of samples with their rewards."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from uniar.reading.files import whole_file

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
