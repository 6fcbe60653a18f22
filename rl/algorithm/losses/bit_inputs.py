"""The bits that samples drew, as a policy loss sees them."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from rl.algorithm import bernoulli
from rl.algorithm.losses.inputs import PolicyInputs
from rl.algorithm.losses.settings import KLKind


@dataclass
class LossInputs(PolicyInputs):
    """B samples, their bits and advantages. Gaps are the policy's (`GuidanceSettings.policy_gap`), in float32 or
    float64, shaped (B, T, …): in a run (B, T, L, S, K).

    Raises ValueError for shapes that do not fit, or a half type.
    """

    advantages: Tensor
    """(B,); kept as (B, 1, …) in the type of the gaps, to multiply terms with, and where there is `credit` as the gaps
    are shaped"""
    bits: Tensor
    """{0, 1}, shaped as the gaps"""
    gap: Tensor
    """with gradient"""
    old_gap: Tensor | None = None
    """of the policy that the ratio is taken to; None: `gap` itself, without gradient (one update per rollout)"""
    ref_gap: Tensor | None = None
    """of the reference; None without one"""
    mask: Tensor = None  # __post_init__ replaces None
    """(B, T), …, or as the gaps: true for bits that exist, false for the padding of a smaller image; None: all exist.
    Kept as the gaps are shaped, 1.0 and 0.0."""
    credit: Tensor | None = None
    """what the advantage of each bit is multiplied by, not negative, shaped as the gaps; None: 1 everywhere"""
    logp: Tensor = field(init=False)
    """log π of each drawn bit, with gradient"""
    old_logp: Tensor = field(init=False)
    """the same of the old policy, without"""
    entropy: Tensor = field(init=False)
    """of each bit in nats, with gradient"""

    def __post_init__(self) -> None:
        gap = self.gap
        if gap.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"gaps are {gap.dtype}, expected float32: half types are too coarse.")
        if gap.ndim < 3:
            raise ValueError(f"gap has shape {tuple(gap.shape)}, expected (B, T, …).")
        if self.advantages.shape != gap.shape[:1]:
            raise ValueError(f"advantages have shape {tuple(self.advantages.shape)}, expected ({len(gap)},).")
        for name in ("bits", "old_gap", "ref_gap", "credit"):
            tensor = getattr(self, name)
            if tensor is not None and tensor.shape != gap.shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(gap.shape)}.")
        self.unpadded = self.mask is None
        if self.unpadded:
            self.mask = torch.ones_like(gap)
        else:
            exists = _spread(self.mask, gap.shape).bool()
            # Whatever stands in the padding, even NaN, must not reach a sum or a gradient.
            for name in ("gap", "old_gap", "ref_gap", "credit"):
                if (tensor := getattr(self, name)) is not None:
                    setattr(self, name, torch.where(exists, tensor, 0.0))
            self.mask = exists.to(gap.dtype)
        self.advantages = self.advantages.to(gap.dtype).view(-1, *[1] * (gap.ndim - 1))
        if self.credit is not None:
            self.advantages = self.advantages * self.credit.to(gap.dtype)
        self.logp, self.entropy = bernoulli.log_prob(self.bits, self.gap), bernoulli.entropy(self.gap)
        if self.old_gap is None:
            self.old_gap, self.old_logp = self.gap.detach(), self.logp.detach()
        else:
            self.old_gap = self.old_gap.detach()
            self.old_logp = bernoulli.log_prob(self.bits, self.old_gap)

    def kl_to_reference(self, kind: KLKind) -> Tensor | None:
        """KL(π‖ref) of each bit in nats, shaped as the gaps; None without a reference."""
        if self.ref_gap is None:
            return None
        if kind == "exact":
            return bernoulli.kl(self.gap, self.ref_gap)
        return bernoulli.kl_estimate(self.logp, bernoulli.log_prob(self.bits, self.ref_gap), kind)

    def kl_from_old(self) -> Tensor:
        """KL(π_old‖π) of each bit in nats without gradient, shaped as the gaps."""
        with torch.no_grad():
            return bernoulli.kl(self.old_gap, self.gap)

    def total_variation(self) -> Tensor:
        """|p - p_old| of each bit, exact, without gradient, shaped as the gaps."""
        with torch.no_grad():
            return bernoulli.total_variation(self.gap, self.old_gap)


def _spread(mask: Tensor, shape: torch.Size) -> Tensor:
    """(B, T), … → the whole shape, repeated over the dimensions it does not have."""
    if mask.shape != shape[: mask.ndim]:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, expected the first dimensions of {tuple(shape)}.")
    return mask.view(mask.shape + (1,) * (len(shape) - mask.ndim)).expand(shape)
