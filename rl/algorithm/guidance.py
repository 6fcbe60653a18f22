"""Classifier-free guidance as part of the policy: which gap a bit was drawn from, and which gap is trained.

Raw gaps d_c (conditional branch) and d_u (unconditional branch) at T = 1 in, the policy's gap out. Guidance and
temperature are linear in the gap: d* = (d_u + s·(d_c - d_u)) / T. The conventions are a closed set:

none           one branch: drawn from and trained as d_c / T
guided         drawn from d*, trained as d*, gradient through both branches
guided_detach  the same numbers, no gradient through the unconditional branch
conditional    drawn from d*, trained as if d_c / T had drawn: biased, common elsewhere, measured by
               `conditional_mismatch`

The reference policy and the old policy go through the same convention as the policy.
"""

import typing

from torch import Tensor

from rl.algorithm.bernoulli import kl
from rl.config.sections import Guidance

CONVENTIONS: tuple[Guidance, ...] = typing.get_args(Guidance)


def rollout_gap(
    gap_cond: Tensor, gap_uncond: Tensor | None, convention: Guidance, scale: float, temperature: float
) -> Tensor:
    """The gap that the bits were drawn from, same shape as `gap_cond`.

    gap_cond, gap_uncond: raw gaps of each branch (B, T, L, S, K), float32. scale: s. temperature: T > 0.
    Raises ValueError for an unknown convention, T ≤ 0, or a missing branch.
    """
    _check(convention, temperature)
    if convention == "none":
        return gap_cond / temperature
    return _guided(gap_cond, gap_uncond, convention, scale, temperature)


def policy_gap(
    gap_cond: Tensor, gap_uncond: Tensor | None, convention: Guidance, scale: float, temperature: float
) -> Tensor:
    """The gap that log-probabilities, KL and entropy are taken of, with gradients as the convention says.

    Arguments and errors as `rollout_gap`; `conditional` needs no `gap_uncond` here.
    """
    _check(convention, temperature)
    if convention in ("none", "conditional"):
        return gap_cond / temperature
    if convention == "guided_detach" and gap_uncond is not None:
        gap_uncond = gap_uncond.detach()
    return _guided(gap_cond, gap_uncond, convention, scale, temperature)


def conditional_mismatch(gap_cond: Tensor, gap_uncond: Tensor, scale: float, temperature: float) -> Tensor:
    """What `conditional` gets wrong: KL(drawn‖trained) of each bit in nats, exact, without gradient.

    Same shape as the gaps; 0 everywhere at s = 1. Its sum over the bits of an image is the divergence between the
    distribution that drew the image and the one that is trained, estimated on the drawn prefixes.
    """
    drawn = rollout_gap(gap_cond, gap_uncond, "conditional", scale, temperature)
    trained = policy_gap(gap_cond, gap_uncond, "conditional", scale, temperature)
    return kl(drawn.detach(), trained.detach())


def _guided(
    gap_cond: Tensor, gap_uncond: Tensor | None, convention: Guidance, scale: float, temperature: float
) -> Tensor:
    if gap_uncond is None:
        raise ValueError(f"guidance {convention} needs the gaps of the unconditional branch.")
    return (gap_uncond + scale * (gap_cond - gap_uncond)) / temperature


def _check(convention: Guidance, temperature: float) -> None:
    if convention not in CONVENTIONS:
        raise ValueError(f"unknown guidance convention {convention!r}; expected one of {', '.join(CONVENTIONS)}.")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature:g}; a policy needs one above 0 (0 is greedy: nothing is drawn).")
