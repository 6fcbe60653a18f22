"""RL trainers for UniAR: prompts, rollout, decode, reward, advantage, loss, update, evaluation, export.

`load_recipe`, `train` and `UniARTrainer` are loaded at their first use, so that `import rl` costs nothing.
"""

import os
from types import ModuleType

from rl.rooms import check_rooms

check_rooms()

from uniar.import_hooks import loaded_at_first_use, on_import  # noqa: E402  (the rooms are ours now)


def _tell_deepspeed(_: ModuleType) -> None:
    """DeepSpeed looks for its accelerator when transformers imports it; without a GPU it must be told."""
    import torch

    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


on_import("deepspeed", before=_tell_deepspeed)

_MODULES = {"UniARTrainer": "rl.trainer.trainer", "load_recipe": "rl.config.recipe"}

__getattr__ = loaded_at_first_use(__name__, _MODULES)
