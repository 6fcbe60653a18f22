"""How large gradients are beside the epsilon of Adam and its like, which they have to be well above."""

import logging
import math
from collections.abc import Iterable
from typing import Any

from torch import nn
from trl import GRPOConfig

from rl.distributed.engine import whole_shape

logger = logging.getLogger(__name__)

ROOM = 10
"""times epsilon: below, steps shrink with the gradient by a tenth and more, which no one has asked for"""


class GradientSize:
    """Measures what the optimizer is given, from the norm that is logged anyway; warns once where it is too small."""

    def __init__(self, trained: Iterable[nn.Parameter], args: GRPOConfig, optimizer: Any) -> None:
        """optimizer: as transformers has it, whose epsilon may be the recipe's or of DeepSpeed's own settings."""
        self.weights = sum(whole_shape(parameter).numel() for parameter in trained)
        self.clipped_at = args.max_grad_norm or math.inf
        epsilon = optimizer.param_groups[0].get("eps")
        self.epsilon = epsilon if isinstance(epsilon, float) else 0.0  # none in SGD, Adafactor's two are others
        self._said = not args.should_log

    def metrics(self, norm: float) -> dict[str, float]:
        """norm: of the gradient of all weights before it is clipped. Returns the root mean square a weight, as the
        optimizer sees it; nothing where DeepSpeed knows no norm, which is negative then."""
        if norm < 0:
            return {}
        rms = min(norm, self.clipped_at) / math.sqrt(self.weights)
        if 0 < rms < ROOM * self.epsilon and not self._said:
            self._said = True
            logger.warning(
                "WARNING: gradients are %.2g (root mean square), less than %d times the optimizer's epsilon, "
                "%.2g: its steps are smaller than the learning rate by what epsilon weighs. Lower trainer.adam_epsilon "
                "(or eps in DeepSpeed's own optimizer), or raise algorithm.loss_scale and trainer.max_grad_norm alike.",
                rms,
                ROOM,
                self.epsilon,
            )
        return {"optimizer/grad_rms": rms}
