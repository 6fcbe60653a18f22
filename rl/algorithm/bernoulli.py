"""One visual bit is Bernoulli given the past: everything about its distribution, from its logit gap d = l₁ - l₀.

p(1) = σ(d). Gaps here are those of a policy, guidance and temperature included (rl/algorithm/guidance.py). Every
function is elementwise over any shape, in the gap's own type: float32 in training (half types are too coarse for
log-probabilities, see docs/algorithms.md), float64 in tests. Values and gradients are finite for every finite gap.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]

MAX_LOG_RATIO = 20.0
"""Largest log-ratio that is exponentiated: e²⁰ = 5e8 is past any use, and float32 overflows at e⁸⁹."""


def log_prob(bits: Tensor, gap: Tensor) -> Tensor:
    """log π(b) = -softplus(-(2b - 1)·d) in nats.

    bits: {0, 1} of any type; gap: same shape. (logsigmoid is that softplus without its cut-off at 20.)
    """
    return F.logsigmoid(torch.where(bits.bool(), gap, -gap))


def entropy(gap: Tensor) -> Tensor:
    """Entropy in nats, between 0 and log 2.

    With a = |d| it is log(1 + e⁻ᵃ) + a·σ(-a): two positive terms, so nothing cancels when the bit is nearly certain.
    """
    size = gap.abs()
    return torch.log1p(torch.exp(-size)) + size * torch.sigmoid(-size)


def kl(gap: Tensor, ref_gap: Tensor) -> Tensor:
    """KL(π‖ref) in nats, exact given the prefix: p·x + log1p(p·expm1(-x)), x = d - d_ref.

    The textbook form p·x - softplus(d) + softplus(d_ref) loses its digits in float32 near x = 1e-3, where policies
    live; this one keeps them, once both gaps are mirrored so that p ≤ 1/2. Past |x| = 1, where expm1 would come to
    overflow, the textbook form is accurate and is used. The gradients are given in closed form, p·(1 - p)·x and
    p_ref - p, since automatic ones would subtract two numbers near p.
    """
    return _KL.apply(gap, ref_gap)


class _KL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gap: Tensor, ref_gap: Tensor) -> Tensor:
        ctx.save_for_backward(gap, ref_gap)
        mirror = torch.where(gap > 0, -1.0, 1.0).to(gap.dtype)
        gap, ref_gap = mirror * gap, mirror * ref_gap
        p, x = torch.sigmoid(gap), gap - ref_gap
        near = p * x + torch.log1p(p * torch.expm1(-x.clamp(-1, 1)))
        far = p * x + F.logsigmoid(-gap) - F.logsigmoid(-ref_gap)
        return torch.where(x.abs() <= 1, near, far).clamp(min=0)  # rounding may leave -1e-10

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gap, ref_gap = ctx.saved_tensors
        p = torch.sigmoid(gap)
        return grad * p * torch.sigmoid(-gap) * (gap - ref_gap), grad * (torch.sigmoid(ref_gap) - p)


def kl_estimate(logp: Tensor, ref_logp: Tensor, kind: KLEstimator) -> Tensor:
    """Estimates of KL(π‖ref) from the log-probability of one drawn bit under each policy (Schulman, 2020).

    With r = ref_logp - logp: k1 = -r, k2 = r²/2, k3 = eʳ - 1 - r (eʳ capped at e²⁰). For comparison with other work:
    `kl` has no sampling variance, and the gradient of k3 is not that of the KL divergence.
    """
    r = ref_logp - logp
    if kind == "k1":
        return -r
    if kind == "k2":
        return r.square() / 2
    if kind == "k3":
        r = r.clamp(max=MAX_LOG_RATIO)
        return torch.expm1(r) - r
    raise ValueError(f"unknown KL estimator {kind!r}; expected k1, k2 or k3.")


def total_variation(gap: Tensor, old_gap: Tensor) -> Tensor:
    """|p - p_old|: the total-variation distance of the bit's two distributions, exact, between 0 and 1."""
    return (torch.sigmoid(gap) - torch.sigmoid(old_gap)).abs()
