"""The tokens that samples wrote, as a policy loss sees them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rl.algorithm import bernoulli
from rl.algorithm.losses.inputs import PolicyInputs
from rl.algorithm.losses.settings import KLKind

KEPT = ("logp", "old_logp", "entropy", "ref_logp", "ref_kl")


@dataclass(kw_only=True)
class TokenInputs(PolicyInputs):
    """B texts of at most A tokens, each drawn from a distribution over the vocabulary. Of that distribution only a few
    numbers are given, so what needs all of it is estimated from the token that was drawn.

    Tensors are given as (B, A), in float32 or float64, and kept as (B, A, 1) with zeros in the padding, NaN included.
    Raises ValueError for shapes that do not fit, or a half type.
    """

    advantages: Tensor
    """(B,); kept as (B, 1, 1)"""
    logp: Tensor
    """log π of each written token, with gradient"""
    mask: Tensor
    """true where a token was written; kept as 1.0 and 0.0"""
    entropy: Tensor
    """of the distribution over the vocabulary, in nats"""
    old_logp: Tensor = None
    """log π_old of each written token; None: `logp` itself, without gradient (one update per rollout)"""
    ref_logp: Tensor | None = None
    """of the reference, for the sampled estimators of the KL divergence"""
    ref_kl: Tensor | None = None
    """KL(π‖ref) over the whole vocabulary in nats, with gradient, for `kl: exact`"""

    def __post_init__(self) -> None:
        shape, dtype = self.logp.shape, self.logp.dtype
        if len(shape) != 2:
            raise ValueError(f"logp has shape {tuple(shape)}, expected (B, A).")
        if self.advantages.shape != shape[:1]:
            raise ValueError(f"advantages have shape {tuple(self.advantages.shape)}, expected ({shape[0]},).")
        if self.old_logp is None:
            self.old_logp = self.logp
        for name in ("mask", *KEPT):
            tensor = getattr(self, name)
            if tensor is not None and tensor.shape != shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}.")
            if tensor is not None and name != "mask" and tensor.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"{name} is {tensor.dtype}, expected float32: half types are too coarse.")
        exists = self.mask.bool()
        for name in KEPT:
            if (tensor := getattr(self, name)) is not None:
                setattr(self, name, torch.where(exists, tensor, 0.0).unsqueeze(-1))
        self.old_logp = self.old_logp.detach()
        self.mask, self.unpadded = exists.to(dtype).unsqueeze(-1), False
        self.advantages = self.advantages.to(dtype).view(-1, 1, 1)

    def kl_to_reference(self, kind: KLKind) -> Tensor | None:
        """`ref_kl` where kind is "exact", else estimated from `ref_logp`; None without either. Raises ValueError where
        only the other one is there."""
        if self.ref_kl is None and self.ref_logp is None:
            return None
        needed = "ref_kl" if kind == "exact" else "ref_logp"
        if getattr(self, needed) is None:
            raise ValueError(f"kl is {kind} and needs {needed}, which is None.")
        if kind == "exact":
            return self.ref_kl
        return bernoulli.kl_estimate(self.logp, self.ref_logp, kind)

    def kl_from_old(self) -> Tensor:
        """The estimate k3 from the written token, as the whole distribution is not known: r - 1 - log r, r = π/π_old.
        Over tokens drawn from π_old its mean is the divergence; single values get as large as r."""
        with torch.no_grad():
            return bernoulli.kl_estimate(self.old_logp, self.logp, "k3")

    def total_variation(self) -> Tensor:
        """|p - p_old| of the written token: that of the vocabulary lumped into it and all others, which is at most that
        of the vocabulary (the binary form of DPPO, 2602.04879)."""
        with torch.no_grad():
            return (self.logp.exp() - self.old_logp.exp()).abs()
