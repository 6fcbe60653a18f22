"""The evaluations that a folder holds, of a run or of `uniar-rl evaluate --output`."""

import logging
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from rl.checkpoint.layout import EVALUATIONS
from rl.records.rows import COLUMNS, read_rows
from rl.run.records import files_of_steps
from uniar.errors import UserError

logger = logging.getLogger(__name__)


def evaluation_files(folder: Path) -> dict[int, Path]:
    """Update → the file with its evaluation's rows, in order."""
    return files_of_steps(folder / EVALUATIONS, ".parquet")


def whole_rows(file: Path, columns: Mapping[str, pa.DataType] = COLUMNS, *, pictures: bool = True) -> pa.Table | None:
    """As `read_rows` reads them; None, with a warning, for a file that is damaged."""
    try:
        return read_rows(file, columns, pictures=pictures)
    except UserError as error:
        logger.warning("The page leaves this out: %s", error)
        return None


def named_rows(path: Path) -> tuple[str, pa.Table]:
    """What a user calls an evaluation, and its rows: of a folder the last, or those of the Parquet file named. Raises
    UserError where there is none."""
    if path.is_file():
        return str(path), read_rows(path)
    files = evaluation_files(path)
    if not files:
        raise UserError(
            f"'{path}' holds no evaluation (evaluations/step-N.parquet); name a run's folder, one that `uniar-rl "
            "evaluate --output` wrote, or such a file."
        )
    step, file = list(files.items())[-1]
    return f"{path}, update {step}", read_rows(file)
