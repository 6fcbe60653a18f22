"""Drawn images as the scorers of the benchmarks read them, beside UniAR's own layout. GenEval's reads that one, with
the metadata.jsonl that is in each of its folders."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from rl.benchmarks.folder import OFFICIAL, BenchmarkFolder
from rl.data.prompts import PromptRecord
from rl.policy.samples import Sample
from uniar.errors import UserError
from uniar.reading.files import whole_file, write_whole, writing

Groups = Sequence[tuple[PromptRecord, Sequence[Sample]]]
Writer = Callable[[BenchmarkFolder, Groups, Path, str], None]


def write_official(name: str, folder: BenchmarkFolder, samples: Sequence[Sample], model: str) -> Path | None:
    """Writes the official layout of the benchmark `name` and returns its folder; None for one that has none of its own.
    samples: prompt by prompt. model: what the scorer is to call the model."""
    if name not in WRITERS:
        return None
    each = len(samples) // len(folder.records)
    groups = [(record, samples[n * each : (n + 1) * each]) for n, record in enumerate(folder.records)]
    target = folder.path / OFFICIAL
    with writing(target):
        shutil.rmtree(target, ignore_errors=True)  # it is made of the images alone
        target.mkdir()
        WRITERS[name](folder, groups, target, model)
    return target


def check_official(name: str, folder: BenchmarkFolder, images: int) -> None:
    """Raises UserError where the layout could not be written: names that occur twice, images that make no square."""
    if name in ("oneig", "dpg") and math.isqrt(images) ** 2 != images:
        raise UserError(f"--images-per-prompt is {images}; {name}'s scorer reads 1, 4 or 9 of them, as a square.")
    if name in NAMES:
        names = [_name(folder, record, NAMES[name]) for record in folder.records]
        if twice := next((one for one in names if names.count(one) > 1), None):
            raise UserError(f"two prompts of {name} have the {NAMES[name]} {twice!r}; its scorer knows them by it.")


NAMES = {"oneig": "id", "longtext": "prompt_id", "imgedit": "original_id", "dpg": "id"}
"""the key of the metadata that a scorer knows a prompt by"""


def _name(folder: BenchmarkFolder, record: PromptRecord, key: str) -> str:
    """What its files are called: never a path."""
    name = str(record.metadata.get(key, folder.numbers[record.id]))
    if not name or name.startswith(".") or any(c in '/\\:*?"<>|' or not c.isprintable() for c in name):
        raise UserError(f"{record.where}: '{key}' is {name!r}, which cannot be the name of a file.")
    return name


def _oneig(folder: BenchmarkFolder, groups: Groups, target: Path, model: str) -> None:
    place = target / "text" / model
    place.mkdir(parents=True, exist_ok=True)
    for record, samples in groups:
        grid = _grid([folder.load(sample) for sample in samples])
        _save(grid, place / f"{_name(folder, record, NAMES['oneig'])}.webp", format="WEBP", lossless=True)


def _dpg(folder: BenchmarkFolder, groups: Groups, target: Path, model: str) -> None:
    for record, samples in groups:
        grid = _grid([folder.load(sample) for sample in samples])
        _save(grid, target / f"{_name(folder, record, NAMES['dpg'])}.png", format="PNG")


def _longtext(folder: BenchmarkFolder, groups: Groups, target: Path, model: str) -> None:
    for record, samples in groups:
        for sample in samples:
            name = f"{_name(folder, record, NAMES['longtext'])}_{sample.index}.png"
            write_whole(target / name, folder.image(sample).read_bytes())


def _imgedit(folder: BenchmarkFolder, groups: Groups, target: Path, model: str) -> None:
    for record, samples in groups:
        name = f"{_name(folder, record, NAMES['imgedit'])}.png"
        write_whole(target / name, folder.image(samples[0]).read_bytes())


def _geneval2(folder: BenchmarkFolder, groups: Groups, target: Path, model: str) -> None:
    paths = {record.prompt: str(folder.image(samples[0]).resolve()) for record, samples in groups}
    write_whole(target / "image_paths.json", json.dumps(paths, indent=2, ensure_ascii=False) + "\n")


def _grid(images: Sequence[Image.Image]) -> Image.Image:
    """A square of images, row by row."""
    side, (width, height) = math.isqrt(len(images)), images[0].size
    grid = Image.new("RGB", (side * width, side * height))
    for number, image in enumerate(images):
        grid.paste(image, (number % side * width, number // side * height))
    return grid


def _save(image: Image.Image, path: Path, **how: object) -> None:
    with whole_file(path) as unfinished:
        image.save(unfinished, **how)


WRITERS: dict[str, Writer] = {
    "oneig": _oneig,
    "longtext": _longtext,
    "imgedit": _imgedit,
    "dpg": _dpg,
    "geneval2": _geneval2,
}
