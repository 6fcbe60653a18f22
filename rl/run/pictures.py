"""Grids of samples with their rewards."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from rl.evaluation.evaluate import Shown
from rl.records.rows import source_of
from uniar.reading.files import whole_file

TILE, MARGIN, LINE = 192, 8, 16
BAND = 4
"""lines of text over a picture, at most"""


def sample_grid(shown: Sequence[Shown], path: Path, notes: Sequence[str] | None = None) -> None:
    """Writes a PNG: of each sample the image, or what it wrote where it drew none, over the picture that its prompt is
    about; its reward and the prompt under it (cut to two lines), and where `notes` says something about any of them,
    that (cut to three)."""
    # About as wide as high: a tile with its text is half as high again as wide.
    columns = min(max(4, round(math.sqrt(1.5 * len(shown)))), max(len(shown), 1))
    rows = math.ceil(len(shown) / columns)
    notes = notes if notes and any(notes) else [""] * len(shown)
    cell_w, cell_h = TILE + MARGIN, TILE + (3 + 3 * any(notes)) * LINE + MARGIN
    sheet = Image.new("RGB", (columns * cell_w + MARGIN, rows * cell_h + MARGIN), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, (record, image, reward, texts) in enumerate(shown):
        x, y = MARGIN + number % columns * cell_w, MARGIN + number // columns * cell_h
        pictured = image if image is not None else source_of(record)
        if pictured is not None:
            fitted = _fitted(pictured)
            sheet.paste(fitted, (x + (TILE - fitted.width) // 2, y + (TILE - fitted.height) // 2))
        if image is None:
            room = TILE // LINE - 1 if pictured is None else BAND
            lines = [line for text in texts for line in _wrap(text, font, TILE - MARGIN, room)][:room]
            top = y if pictured is None else y + TILE - len(lines) * LINE - MARGIN
            pen.rectangle((x, top, x + TILE - 1, y + TILE - 1), fill="white", outline="#cccccc")
            for row, line in enumerate(lines):
                pen.text((x + MARGIN // 2, top + MARGIN // 2 + row * LINE), line, fill="black", font=font)
        score = "no reward" if math.isnan(reward) else f"{reward:.3f}"
        for row, line in enumerate([score, *_wrap(record.prompt, font, TILE, lines=2)]):
            pen.text((x, y + TILE + row * LINE), line, fill="black" if row == 0 else "#555555", font=font)
        for row, line in enumerate(_wrap(notes[number], font, TILE, lines=3), start=3):
            pen.text((x, y + TILE + row * LINE), line, fill="#888888", font=font)
    path.parent.mkdir(exist_ok=True)
    with whole_file(path) as unfinished:
        sheet.save(unfinished, format="PNG")


def _fitted(image: Image.Image) -> Image.Image:
    """In the size of a tile. Small images are enlarged without smoothing, so that what the decoder drew stays
    visible."""
    small, scale = max(image.size) < TILE, TILE / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return image.resize(size, Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)


def _wrap(text: str, font: Any, width: int, lines: int) -> list[str]:
    out, rest = [], " ".join(text.split())
    while rest and len(out) < lines:
        end = min(len(rest), width)  # no letter is narrower than a pixel
        while (
            end > 1 and font.getlength(rest[:end] + ("…" if end < len(rest) and len(out) == lines - 1 else "")) > width
        ):
            end -= 1
        cut = rest.rfind(" ", 0, end + 1) if end < len(rest) else end
        end = cut if cut > 0 and len(out) < lines - 1 else end
        out.append(rest[:end].strip() + ("…" if end < len(rest) and len(out) == lines - 1 else ""))
        rest = rest[end:].strip()
    return out
