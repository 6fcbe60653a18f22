"""What a policy loss looks at, of the bits of images and of the tokens of texts alike."""

import math
from abc import ABC, abstractmethod

from torch import Tensor

from rl.algorithm.losses.settings import KLKind, RatioLevel


class PolicyInputs(ABC):
    """B samples as a policy loss sees them. Their elements are shaped (B, T, …): bits (`LossInputs`), in a run
    (B, T, L, S, K), or written tokens (`TokenInputs`), (B, T, 1). No loss asks which. Whatever is said of "a bit" in
    this folder holds for a written token too, which is a visual token of one bit.
    """

    advantages: Tensor
    """(B, 1, …) in the type of the elements, or shaped as they are, to multiply terms with"""
    mask: Tensor
    """as the elements: 1.0 for those that exist, 0.0 for padding"""
    unpadded: bool
    """whether it is known, without a look at the mask, that all elements exist"""
    logp: Tensor
    """log π of each element, with gradient; its shape and type are those of terms"""
    old_logp: Tensor
    """the same of the old policy, without"""
    entropy: Tensor
    """of each element's distribution in nats, with gradient"""

    @abstractmethod
    def kl_to_reference(self, kind: KLKind) -> Tensor | None:
        """KL(π‖ref) of each element in nats; None without a reference."""

    @abstractmethod
    def kl_from_old(self) -> Tensor:
        """KL(π_old‖π) of each element in nats, without gradient."""

    @abstractmethod
    def total_variation(self) -> Tensor:
        """The total-variation distance of π and π_old in each element, between 0 and 1."""

    def narrowing(self, level: RatioLevel | None) -> float | Tensor:
        """What a bit's clip range is multiplied by where one ratio is the mean over m elements that exist: 1/√m.

        The log-ratios of elements are nearly independent, so their mean is √m times closer to 0 and would never meet
        one element's range. For ε = 0.2 and N = 262,144 that is 4e-4, the size that the GSPO paper (2507.18071) uses.
        A number, or of each sample's (and visual token's) own length, (B, 1, …) or (B, T, 1, …): a sample's range must
        not depend on what it is padded to.
        """
        if level not in ("visual_token", "sequence"):
            return 1.0
        first = 2 if level == "visual_token" else 1
        if self.unpadded:
            return 1 / math.sqrt(math.prod(self.mask.shape[first:]))
        return self.mask.sum(tuple(range(first, self.mask.ndim)), keepdim=True).clamp(min=1).rsqrt()
