"""An evaluation's rows in the reporters that the recipe names: pictures with captions, and a table of all samples."""

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from PIL import Image

from rl.records.rows import PICTURES, PREFIX, said_of, shared_details

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_LONGEST_NAME = 80


def caption(row: Mapping[str, Any]) -> str:
    """The prompt, what was written, the total, each reward where there are several, and what rewards say, as a line."""
    scores = {name.removeprefix(PREFIX): score for name, score in row.items() if name.startswith(PREFIX)}
    parts = [row["prompt"], *(row["texts"] or ()), f"total {_shown(row['total'])}"]
    if len(scores) > 1:
        parts += [f"{name} {_shown(score)}" for name, score in scores.items()]
    return " | ".join(part for part in (*parts, said_of(row["details"])) if part)


def to_tensorboard(
    writers: Iterable["SummaryWriter"], rows: pa.Table, shown: Mapping[int, Image.Image | None], step: int
) -> None:
    """The pictures `shown`, by row, each under its prompt, so that its slider goes through the evaluations; the
    captions, which say what was written, as text."""
    for writer in writers:
        for number, image in shown.items():
            row = rows.slice(number, 1).to_pylist()[0]
            name = f"held-out/{number:03d} {' '.join(row['prompt'].split())[:_LONGEST_NAME]}"
            if image is not None:
                writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
            writer.add_text(name, caption(row), step)


def to_wandb(rows: pa.Table, shown: Mapping[int, Image.Image | None], step: int) -> None:
    """The pictures `shown`, by row, with captions, and a table of all rows, in which those have their picture.
    Nothing where no W&B run is under way."""
    import wandb

    if wandb.run is None:
        return
    listed = [{**row, "details": _details(row)} for row in rows.to_pylist()]
    pictures = {number: wandb.Image(image, caption=caption(listed[number])) for number, image in shown.items() if image}
    names = [name for name in rows.column_names if name not in PICTURES]
    table = wandb.Table(columns=[*names, "picture"])
    for number, row in enumerate(listed):
        cells = ("\n".join(row[name]) if isinstance(row[name], list) else row[name] for name in names)
        table.add_data(*cells, pictures.get(number))
    wandb.log({"held_out": list(pictures.values()), "held_out_samples": table, "train/global_step": step})


def _details(row: Mapping[str, Any]) -> str | None:
    said = shared_details(row["details"])
    return json.dumps(said, ensure_ascii=False) if said else None


def _shown(score: float | None) -> str:
    return "none" if score is None else f"{score:.3f}"
