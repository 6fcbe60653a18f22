"""The folder of a benchmark: where its images are, in UniAR's layout, and which of them are drawn already."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from rl.data.prompts import PromptRecord
from rl.policy.samples import DrawSettings, Sample
from rl.run.folder import RunFolder
from uniar.drawn_files import is_drawn, write_image
from uniar.errors import UserError
from uniar.reading.files import remove_unfinished, write_whole, writing
from uniar.reading.pictures import load_picture, picture_digest
from uniar.shareable import shareable

IMAGES, OFFICIAL, BASELINE = "images", "official", "baseline"


@dataclass(frozen=True)
class BenchmarkFolder:
    """images/NNNNN/metadata.json and images/NNNNN/samples/KKKK.png, as UniAR's own scripts write them, below `path`."""

    path: Path
    records: Sequence[PromptRecord]

    @cached_property
    def numbers(self) -> dict[str, int]:
        """A prompt's id → its number: the line's own idx, or its place. Raises UserError for one that occurs twice."""
        found: dict[int, str] = {}
        for place, record in enumerate(self.records):
            idx = record.row.get("idx", place)
            if not str(idx).isdecimal():
                raise UserError(f"{record.where}: 'idx' is {idx!r}; a whole number, 0 or more, is needed.")
            if int(idx) in found:
                raise UserError(f"{record.where}: its idx {int(idx)} is already that of another prompt.")
            found[int(idx)] = record.id
        return {identity: number for number, identity in found.items()}

    @property
    def images(self) -> Path:
        return self.path / IMAGES

    def prompt_folder(self, record: PromptRecord) -> Path:
        return self.images / f"{self.numbers[record.id]:05d}"

    def image(self, sample: Sample) -> Path:
        """The file of a sample."""
        return self.prompt_folder(sample.record) / f"samples/{sample.index:04d}.png"

    def check_free(self) -> None:
        """Raises UserError for a run's folder."""
        if RunFolder(self.path).was_begun:
            raise UserError(f"--output {self.path} is the folder of a run; name another folder.")

    def claim(self) -> None:
        """Makes the folder. Raises UserError for one that is a run's, or cannot be made."""
        self.check_free()
        with writing(self.path):
            self.images.mkdir(parents=True, exist_ok=True)
            remove_unfinished(self.path, "*", "*/*", "*/*/*", "*/*/*/*")

    def describe(self) -> None:
        """Writes metadata.json of each prompt (its line, with idx and prompt), and what GenEval's scorer reads of those
        that ask for objects."""
        for record in self.records:
            folder = self.prompt_folder(record)
            line = {**record.row, "idx": self.numbers[record.id], "prompt": record.prompt}
            with writing(folder):
                folder.mkdir(exist_ok=True)
                write_whole(folder / "metadata.json", _json(line, indent=2))
                if "include" in record.metadata:
                    write_whole(folder / "metadata.jsonl", _json({**record.metadata, "prompt": record.prompt}) + "\n")

    def prune(self, samples: Sequence[Sample]) -> None:
        """Removes images of other samples: what is left of an earlier call may be another model's."""
        images = {self.image(sample) for sample in samples}
        folders = {self.prompt_folder(record) for record in self.records}
        with writing(self.images):
            for folder in self.images.iterdir():
                if folder.name.isdecimal() and folder not in folders:
                    shutil.rmtree(folder)
            for file in self.images.glob("*/samples/*.png"):
                if file not in images:
                    file.unlink()

    def is_drawn(self, sample: Sample, record: dict[str, Any]) -> bool:
        """Whether its file is there as it would be drawn. Raises UserError for any other file in its place."""
        return is_drawn(self.image(sample), record)

    def write(self, sample: Sample, image: Image.Image, record: dict[str, Any]) -> None:
        write_image(image, self.image(sample), record)

    def load(self, sample: Sample) -> Image.Image:
        """The image of a sample, in RGB. Raises UserError where it is not there or not whole."""
        path = self.image(sample)
        return load_picture(path, f"the image {path}")


def image_record(sample: Sample, settings: DrawSettings, dtype: str, weights: str, model: str) -> dict[str, Any]:
    """All that an image depends on, and what its model was called; kept in its file."""
    how = settings.of_images()
    record, edited = sample.record, {}
    if isinstance(record.image, str):
        edited = {"sha256": picture_digest(record.image)}
    elif record.image is not None:
        edited = {"sha256": hashlib.sha256(record.image.content()).hexdigest()}
    noise = settings.bits_seed(sample, 0)  # which depends on the prompt's id
    drawn = {"id": record.id, "prompt": record.prompt, "index": sample.index, "noise": noise, **edited, **how}
    return {**drawn, "dtype": dtype, "weights": weights, "model": shareable(model)}


def _json(content: dict[str, Any], indent: int | None = None) -> str:
    return json.dumps(content, indent=indent, ensure_ascii=False, default=str)
