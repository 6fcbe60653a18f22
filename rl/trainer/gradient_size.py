"""How large gradients are beside Adam's epsilon, which they have to be well above."""

import logging
import math
from collections.abc import Iterable

from torch import nn
from trl import GRPOConfig

from rl.distributed.engine import whole_shape

logger = logging.getLogger(__name__)

ROOM = 10
"""times epsilon: below, Adam's steps shrink with the gradient by a tenth and more, which no one has asked for"""


class GradientSize:
    """Measures what Adam is given, from the norm that is logged anyway, and warns once where it is too small."""

    def __init__(self, trained: Iterable[nn.Parameter], args: GRPOConfig) -> None:
        self.weights = sum(whole_shape(parameter).numel() for parameter in trained)
        self.clipped_at = args.max_grad_norm or math.inf
        self.epsilon = args.adam_epsilon if "adam" in args.optim.lower() else 0.0
        self._said = not args.should_log

    def metrics(self, norm: float) -> dict[str, float]:
        """norm: of the gradient of all weights before it is clipped. Returns the root mean square a weight, as the
        optimizer sees it."""
        rms = min(norm, self.clipped_at) / math.sqrt(self.weights)
        if 0 < rms < ROOM * self.epsilon and not self._said:
            self._said = True
            logger.warning(
                "WARNING: gradients are %.2g (root mean square), less than %d times trainer.adam_epsilon %.2g: Adam's "
                "steps are smaller than the learning rate by what epsilon weighs. Lower trainer.adam_epsilon, or raise "
                "algorithm.loss_scale and trainer.max_grad_norm alike.",
                rms,
                ROOM,
                self.epsilon,
            )
        return {"optimizer/grad_rms": rms}
