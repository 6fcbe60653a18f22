"""Where drawn images go: one file, a flat folder, or the folders that UniAR's own generate_batch.py writes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from uniar.commands.requests import Request
from uniar.drawn_files import MANIFEST, write_manifest
from uniar.errors import UserError
from uniar.reading.files import write_whole, writing

LAYOUTS = {"flat": "*.png", "uniar": "*/samples/*.png"}
"""Which images of a folder are a layout's."""
_OTHER_FORMATS = (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Output:
    """`--output` and `--layout`. Raises UserError for two that do not go together."""

    path: Path
    layout: str = "flat"

    def __post_init__(self) -> None:
        if self.path.suffix.lower() in _OTHER_FORMATS:
            raise UserError(f"--output {self.path}: images are written as PNG; end the name in .png or name a folder.")
        if not self.is_folder and self.layout != "flat":
            raise UserError(f"--output {self.path} is one file; name a folder for the layout {self.layout}.")

    @property
    def is_folder(self) -> bool:
        return self.path.suffix.lower() != ".png"

    @property
    def folder(self) -> Path:
        return self.path if self.is_folder else self.path.parent

    @property
    def files(self) -> tuple[str, ...]:
        """Patterns of all that is written to the folder."""
        return (LAYOUTS[self.layout], MANIFEST, "*/metadata.json") if self.is_folder else (escape(self.path.name),)

    def place(self, request: Request, index: int) -> Path:
        """The file of image number `index` of a request."""
        if not self.is_folder:
            return self.path
        if self.layout == "uniar":
            return self.path / request.name / "samples" / f"{index:04d}.png"
        return self.path / f"{request.name}-{index}.png"

    def describe(self, requests: Sequence[Request], drawn: Sequence[Path]) -> None:
        """Writes what a folder has beside its images: manifest.jsonl, and UniAR's metadata.json of each prompt (its
        line with idx and prompt). Raises UserError where that cannot be."""
        if not self.is_folder:
            return
        for request in requests if self.layout == "uniar" else ():
            file = self.path / request.name / "metadata.json"
            content = {**request.fields, "idx": int(request.name), "prompt": request.prompt}
            with writing(file):
                file.parent.mkdir(exist_ok=True)
                write_whole(file, json.dumps(content, indent=2, ensure_ascii=False))
        write_manifest(self.path, drawn, LAYOUTS[self.layout])
