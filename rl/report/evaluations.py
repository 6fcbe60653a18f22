"""The evaluations that a folder holds, of a run or of `uniar-rl evaluate --output`."""

from pathlib import Path

import pyarrow as pa

from rl.checkpoint.layout import EVALUATIONS
from rl.records.rows import read_rows
from rl.run.records import files_of_steps
from uniar.errors import UserError


def evaluation_files(folder: Path) -> dict[int, Path]:
    """Update → the file with its evaluation's rows, in order."""
    return files_of_steps(folder / EVALUATIONS, ".parquet")


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
