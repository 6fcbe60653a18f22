"""Rows of a dataset of the `datasets` library: from the Hugging Face hub, or a folder that `save_to_disk` wrote."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniar.errors import UserError

if TYPE_CHECKING:
    import datasets


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
        return stored["bytes"] if stored["bytes"] is not None else Path(stored["path"]).read_bytes()


def read_dataset(name: str) -> Iterator[dict[str, Any]]:
    """The rows of `NAME[:SPLIT]`, pictures as DatasetImage; the split is "train" if none is named.

    Raises UserError if there is no such dataset or split.
    """
    dataset = _open(*_name_and_split(name))
    pictures = [column for column, feature in dataset.features.items() if type(feature).__name__ == "Image"]
    for column in pictures:
        dataset = dataset.cast_column(column, type(dataset.features[column])(decode=False))
    for row, values in enumerate(dataset.remove_columns(pictures)):
        stored = {column: DatasetImage(dataset, column, row) for column in pictures}
        yield values | {column: image for column, image in stored.items() if dataset[column][row] is not None}


def _name_and_split(name: str) -> tuple[str, str]:
    head, colon, tail = name.rpartition(":")
    return (head, tail) if colon and head and "/" not in tail else (name, "train")


def _open(name: str, split: str) -> "datasets.Dataset":
    import datasets  # late: it takes a second, and most runs read files

    try:
        if not (Path(name) / "dataset_info.json").is_file() and not (Path(name) / "dataset_dict.json").is_file():
            return datasets.load_dataset(name, split=split)
        found = datasets.load_from_disk(name)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the dataset '{name}' with split '{split}' cannot be loaded: {reason}") from error
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise UserError(f"the dataset '{name}' has no split '{split}'; it has {', '.join(map(str, found))}.")
        return found[split]
    return found
