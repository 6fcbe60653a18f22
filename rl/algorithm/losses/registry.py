"""From a loss's name to the loss."""

import functools

from rl.algorithm.losses.cispo import CISPO
from rl.algorithm.losses.dapo import DAPO
from rl.algorithm.losses.dppo_tv import DPPOTV
from rl.algorithm.losses.dr_grpo import DrGRPO
from rl.algorithm.losses.grpo import GRPO
from rl.algorithm.losses.gspo import GSPO
from rl.algorithm.losses.loss import Loss
from rl.algorithm.losses.plugin import PluginLoss
from uniar.errors import UserError

LOSSES: dict[str, Loss] = {kind.name: kind() for kind in (GRPO, DrGRPO, DAPO, GSPO, CISPO, DPPOTV)}
"""the default first"""


@functools.cache
def loss_named(name: str) -> Loss:
    """A loss of this folder, or a plug-in, which is not loaded yet. Raises UserError for an unknown name."""
    if name in LOSSES:
        return LOSSES[name]
    if ":" in name:
        return PluginLoss(name)
    raise UserError(f"algorithm.loss is {name!r}, expected one of {', '.join(LOSSES)} or path/to/file.py:function.")
