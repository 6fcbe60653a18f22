"""The averaged weights in a checkpoint (model.ema), read without a trainer."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from rl.distributed.weight_slices import SlicedFiles
from uniar.errors import UserError

FOLDER = "ema"
"""in a checkpoint"""


def averaged_weights(checkpoint: Path) -> Mapping[str, Tensor]:
    """The averages in a checkpoint under the trained model's names, in float32, each put together at its look-up.

    Raises UserError for a checkpoint without them, or with some of their files missing.
    """
    if not (checkpoint / FOLDER).is_dir():
        raise UserError(f"{checkpoint} has no averaged weights; its run had no model.ema.")
    return SlicedFiles(checkpoint / FOLDER)
