"""The weights of a checkpoint, in whichever form training has left them."""

from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from rl.checkpoint.adapters import merge_checkpoint
from rl.checkpoint.layout import ADAPTER_CONFIG, MODEL_CONFIG, MODEL_WEIGHTS
from rl.checkpoint.tensor_files import TensorFiles, averaged_weights
from rl.checkpoint.zero_shards import ZeroShards
from rl.distributed.engine import LATEST, has_shards
from uniar.errors import UserError
from uniar.weight_files import has_weights


def trained_weights(checkpoint: Path, source: Path, *, average: bool = False) -> Mapping[str, Tensor]:
    """All weights of a checkpoint under the model's names, read at the look-up; adapters merged into `source`. With
    `average`, those that were trained are the averages."""
    if (checkpoint / ADAPTER_CONFIG).is_file():
        return merge_checkpoint(checkpoint, source, average=average)
    if average:
        return ChainMap(averaged_weights(checkpoint), trained_weights(checkpoint, source))
    if not (checkpoint / MODEL_CONFIG).is_file():
        raise UserError(f"{checkpoint} has neither {MODEL_CONFIG} (full checkpoint) nor {ADAPTER_CONFIG} (LoRA).")
    if has_weights(checkpoint):
        return TensorFiles(checkpoint)
    if has_shards(checkpoint):
        return ZeroShards(checkpoint)
    raise UserError(f"{checkpoint} has neither {MODEL_WEIGHTS}, nor its index, nor DeepSpeed's shards ('{LATEST}').")
