"""Rows of a dataset of the `datasets` library: from the Hugging Face hub, or a folder that `save_to_disk` wrote."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from uniar.errors import UserError
from uniar.reading.files import reason_of, user_path
from uniar.reading.json_lines import JsonLine, parse_json
from uniar.reading.pictures import picture_name, require_picture_file
from uniar.reading.prompt_forms import has_rows

if TYPE_CHECKING:
    import datasets


DATASETS = "datasets:"
"""what the name of a dataset begins with"""


@dataclass(frozen=True, eq=False)
class DatasetImage:
    """A picture that stays in its dataset until it is asked for."""

    dataset: "datasets.Dataset"
    column: str
    row: int

    def __str__(self) -> str:
        return f"column {self.column}, row {self.row}"

    def content_hash(self) -> str:
        return hashlib.sha256(self.content()).hexdigest()

    def content(self) -> bytes:
        """Of the picture's file. Raises UserError if it cannot be read."""
        stored = self.dataset[self.column][self.row]
        if stored["bytes"] is not None:
            return stored["bytes"]
        return require_picture_file(stored["path"], picture_name(stored["path"])).read_bytes()


def is_dataset(name: str) -> bool:
    """Whether prompts of this name are a dataset: `datasets:NAME`, or a folder that `datasets` reads."""
    return name.startswith(DATASETS) or (os.path.isdir(name) and (_is_saved(name) or not has_rows(Path(name))))


def read_dataset(name: str) -> Iterator[JsonLine]:
    """The rows of `NAME[:SPLIT]`, numbered from 0, without the fields that are null, pictures as DatasetImage; without
    SPLIT, those of "train".

    Raises UserError if there is no such dataset or split.
    """
    dataset = _open(*split_of(name))
    pictures = [column for column, feature in dataset.features.items() if type(feature).__name__ == "Image"]
    for column in pictures:
        dataset = dataset.cast_column(column, type(dataset.features[column])(decode=False))
    for row, values in enumerate(dataset.remove_columns(pictures)):
        place = f"dataset '{name}', row {row}"
        if isinstance(values.get("metadata"), str):  # columns have one type, so mixed metadata is stored as JSON
            values["metadata"] = parse_json(values["metadata"], f"{place}: metadata")
        values |= {
            column: DatasetImage(dataset, column, row) for column in pictures if dataset[column][row] is not None
        }
        yield JsonLine(Path(name), row, {key: value for key, value in values.items() if value is not None}, place)


def split_of(name: str) -> tuple[str, str]:
    """NAME and SPLIT of `NAME[:SPLIT]`."""
    head, colon, tail = name.rpartition(":")
    return (head, tail) if colon and head and "/" not in tail else (name, "train")


def _is_saved(name: str) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return any((Path(name) / file).is_file() for file in ("dataset_info.json", "dataset_dict.json"))


def _open(name: str, split: str) -> "datasets.Dataset":
    if not name.strip():
        raise UserError(f"'{DATASETS}' names no dataset; expected {DATASETS}NAME[:SPLIT].")
    user_path(name)
    import datasets  # late: it takes a second, and most runs read files

    try:
        if not _is_saved(name):
            return datasets.load_dataset(os.path.abspath(name) if os.path.isdir(name) else name, split=split)
        found = datasets.load_from_disk(name)
    except Exception as error:  # of a folder that is none it may be anything
        reason = reason_of(error.__cause__ or error)
        if not isinstance(error, datasets.exceptions.DatasetsError | OSError | ValueError):
            reason = f"the library finds no data there ({type(error).__name__})"
        raise UserError(f"the dataset '{name}' with split '{split}' cannot be loaded: {reason}.") from error
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise UserError(f"the dataset '{name}' has no split '{split}'; it has {', '.join(map(str, found))}.")
        return found[split]
    return found
