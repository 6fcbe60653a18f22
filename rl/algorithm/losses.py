"""Policy losses on visual bits: pure functions of tensors, (LossInputs, settings) → (loss, metrics).

Shapes: B samples · T visual tokens · L levels · S patches a token · K bits a code · N = T·L·S·K bits a sample.
Inside, every tensor is (B, T, M) with M = L·S·K bits a token; bits given as (B, N) are N tokens of one bit.

A loss is three choices: the term of each bit (a clipped, capped or masked ratio times the advantage), the level that
its ratio stands for, and how terms are averaged. docs/algorithms.md has the formulas beside their papers.
"""

import math
import typing
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rl.algorithm import bernoulli
from rl.algorithm.bernoulli import MAX_LOG_RATIO, KLEstimator
from rl.algorithm.loss_settings import CISPO_CAP, Loss, RatioLevel, conflicting_setting
from rl.algorithm.metrics import Kind
from uniar.errors import UserError

EPSILON = 0.2
EPSILON_HIGH_DAPO = 0.28
DELTA = 0.1
"""Default of dppo_tv: how far ε = 0.2 lets a bit of probability 1/2 move."""
DPPO_MAX_RATIO = 20.0

Aggregation = Literal["sample", "constant", "batch"]
AGGREGATION: dict[Loss, Aggregation] = {
    "grpo": "sample",
    "dr_grpo": "constant",
    "dapo": "batch",
    "gspo": "sample",
    "cispo": "batch",
    "dppo_tv": "batch",
}
METRICS: dict[str, Kind] = {
    "policy_loss": "mean",
    "ratio/mean": "mean",
    "ratio/max": "max",
    "clip_ratio/low_mean": "mean",
    "clip_ratio/high_mean": "mean",
    "clip_ratio/region_mean": "mean",
    "approx_kl": "mean",
    "tv/mean": "mean",
    "tv/max": "max",
    "kl": "mean",
    "entropy": "mean",
}
"""what `policy_loss` measures, and how several measurements of it make one"""


@dataclass
class LossInputs:
    """What a loss looks at. Log-probabilities are given, or made here from bits and gaps; float32 (or float64).

    Raises ValueError for shapes that do not fit, a half type, or neither log-probabilities nor gaps.
    """

    advantages: Tensor
    """(B,)"""
    logp: Tensor | None = None
    """(B, T, L, S, K) or (B, N), with gradient: log π of each drawn bit"""
    old_logp: Tensor | None = None
    """the policy that the ratio is taken to; None: `logp` itself, without gradient (one update a rollout)"""
    ref_logp: Tensor | None = None
    """the reference policy, for k1, k2, k3"""
    bits: Tensor | None = None
    """{0, 1}, where log-probabilities are to be made from gaps"""
    gap: Tensor | None = None
    """the policy's gaps (GuidanceSettings.policy_gap); needed by the exact KL and the entropy bonus"""
    old_gap: Tensor | None = None
    ref_gap: Tensor | None = None
    mask: Tensor | None = None
    """(B, T), (B, N) or as logp: true for bits that exist, false for the padding of a smaller image; None: all exist"""
    weights: Tensor | None = None
    """(B,), (B, T), (B, N) or as logp: factors of the policy term, such as `importance_weights`; None: 1"""

    def __post_init__(self) -> None:
        like = self.logp if self.logp is not None else self.gap
        if like is None:
            raise ValueError("a loss needs logp, or bits and gap.")
        if like.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"log-probabilities or gaps are {like.dtype}, expected float32: half types are too coarse."
            )
        if self.advantages.shape != like.shape[:1]:
            raise ValueError(f"advantages have shape {tuple(self.advantages.shape)}, expected ({len(like)},).")
        per_bit = ("logp", "old_logp", "ref_logp", "gap", "old_gap", "ref_gap")
        for name in (*per_bit, "bits"):
            tensor = getattr(self, name)
            if tensor is not None and tensor.shape != like.shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(like.shape)}.")
        if self.weights is not None:
            self.weights = _spread("weights", self.weights, like.shape).detach()
        if self.mask is not None:
            self.mask = _spread("mask", self.mask, like.shape).bool()
            # Whatever stands in the padding, even NaN, must not reach a sum or a gradient.
            for name in (*per_bit, "weights"):
                if (tensor := getattr(self, name)) is not None:
                    setattr(self, name, torch.where(self.mask, tensor, 0.0))
        self.logp = self._log_prob(self.logp, self.gap)
        self.old_logp = self._log_prob(self.old_logp, self.old_gap)
        if self.old_logp is None:
            self.old_logp, self.old_gap = self.logp, self.gap
        self.old_logp = self.old_logp.detach()

    def _log_prob(self, logp: Tensor | None, gap: Tensor | None) -> Tensor | None:
        if logp is not None or gap is None:
            return logp
        if self.bits is None:
            raise ValueError("log-probabilities cannot be made from gaps without bits.")
        return bernoulli.log_prob(self.bits, gap)

    def kl_to_reference(self, kind: Literal["exact"] | KLEstimator) -> Tensor | None:
        """KL(π‖ref) of each bit, as logp is shaped; None where the inputs do not hold what `kind` needs."""
        if kind == "exact":
            known = self.gap is not None and self.ref_gap is not None
            return bernoulli.kl(self.gap, self.ref_gap) if known else None
        ref_logp = self._log_prob(self.ref_logp, self.ref_gap)
        return None if ref_logp is None else bernoulli.kl_estimate(self.logp, ref_logp, kind)

    def kl_from_old(self) -> Tensor:
        """KL(π_old‖π) of each bit without gradient, as logp is shaped. Raises ValueError without gaps."""
        if self.gap is None or self.old_gap is None:
            raise ValueError("a centred ratio needs gap and old_gap.")
        with torch.no_grad():
            return bernoulli.kl(self.old_gap, self.gap)


class Terms(NamedTuple):
    """The policy term of each bit (B, T, M), to be minimised, and which bits were bounded from below and from above."""

    loss: Tensor
    low: Tensor
    high: Tensor


def policy_loss(
    inputs: LossInputs,
    *,
    loss: Loss = "grpo",
    level: RatioLevel | None = None,
    epsilon: float | None = None,
    epsilon_high: float | None = None,
    delta: float | None = None,
    beta: float = 0.0,
    kl: Literal["exact"] | KLEstimator = "exact",
    entropy_coef: float = 0.0,
    centred: bool = False,
    importance_cap: float | None = None,
    normalizer: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss to minimise (a scalar with gradient) and its metrics (detached scalars, the same keys on every rank).

    loss, level: see docs/algorithms.md; level None is `sequence` for gspo, else `bit`.
    epsilon, epsilon_high: clip range of the ratio, see `clip_range`.
    delta: dppo_tv's bound on the change of a bit's probability; None: 0.1.
    beta, kl: weight and kind of the KL term to the reference, averaged as the policy term is.
    entropy_coef: weight of the mean entropy of a bit, subtracted.
    centred: take a ratio that is a mean over bits without the drift that it has from distance alone, see
        `importance_ratio`; needs gaps.
    importance_cap: largest ratio (None: none). Where the old log-probabilities are the rollout's own, the ratio also
        carries the numerical mismatch between rollout and update: it is then their truncated importance weight.
    normalizer: of dr_grpo: what each sample's sum is divided by (None: N). Of dapo, cispo, dppo_tv: what the sum over
        the batch is divided by (None: its bits that exist). Where images of several sizes fill several micro-batches,
        pass the bits of the whole update over micro-batches × processes.

    Metrics: `policy_loss`, `ratio/mean`, `ratio/max`, `clip_ratio/low_mean`, `/high_mean`, `/region_mean` (share of
    bits that the loss bounds: without gradient, or with a bounded weight in cispo), and towards the old policy
    `approx_kl` (k3), `tv/mean`, `tv/max`; `kl` where there is a reference, `entropy` where there are gaps (both in nats
    a bit).

    Raises UserError for settings that no recipe may combine, ValueError for inputs that a setting needs.
    """
    level = level or ("sequence" if loss == "gspo" else "bit")
    _check_settings(loss, level, epsilon, epsilon_high, delta)
    if level == "visual_token" and inputs.logp.ndim < 3:
        raise ValueError(f"ratio level visual_token needs bits as (B, T, …), got shape {tuple(inputs.logp.shape)}.")
    logp, old_logp = _tokens(inputs.logp), _tokens(inputs.old_logp)
    mask = torch.ones_like(logp) if inputs.mask is None else _tokens(inputs.mask).to(logp.dtype)
    advantages = inputs.advantages.to(logp.dtype)[:, None, None]

    drift = _tokens(inputs.kl_from_old()) if centred and level != "bit" else None
    ratio = importance_ratio(logp, old_logp, level, mask, drift)
    if importance_cap is not None:
        ratio = ratio.clamp(max=importance_cap)
    low, high = clip_range(loss, level, epsilon, epsilon_high, logp.shape[2], logp.shape[1] * logp.shape[2])
    if loss == "cispo":
        terms = cispo_terms(logp, ratio, advantages, low, high)
    elif loss == "dppo_tv":
        terms = dppo_tv_terms(logp, old_logp, ratio, advantages, DELTA if delta is None else delta)
    else:
        terms = clipped_terms(ratio, advantages, low, high)
    if inputs.weights is not None:
        terms = terms._replace(loss=terms.loss * _tokens(inputs.weights))

    total = aggregate(terms.loss, mask, AGGREGATION[loss], normalizer)
    metrics = {"policy_loss": total.detach()} | _old_policy_metrics(inputs, terms, ratio, mask)
    divergence = inputs.kl_to_reference(kl)
    if divergence is not None:
        divergence = _tokens(divergence)
        metrics["kl"] = _mean(divergence, mask).detach()
        if beta:
            total = total + beta * aggregate(divergence, mask, AGGREGATION[loss], normalizer)
    elif beta:
        needed = "gap and ref_gap" if kl == "exact" else "ref_logp, or bits and ref_gap"
        raise ValueError(f"beta is {beta:g}, and the KL term {kl} needs {needed}.")
    if inputs.gap is not None:
        entropy = _mean(bernoulli.entropy(_tokens(inputs.gap)), mask)
        metrics["entropy"] = entropy.detach()
        if entropy_coef:
            total = total - entropy_coef * entropy
    elif entropy_coef:
        raise ValueError(f"entropy_coef is {entropy_coef:g}, and the entropy needs gap.")
    return total, metrics


def clip_range(
    loss: Loss,
    level: RatioLevel,
    epsilon: float | None,
    epsilon_high: float | None,
    bits_per_token: int,
    bits_per_sample: int,
) -> tuple[float | None, float]:
    """(ε, ε_high) with the defaults filled in: how far the ratio may go below 1 and above 1.

    ε is 0.2 for a bit and 0.2/√m where one ratio is the mean over m bits: their log-ratios are nearly independent, so
    the mean is √m times closer to 0 and would never meet a bit's ε. At N = 262,144 that is 4e-4, the size that the GSPO
    paper uses. ε_high is ε, but for dapo 0.28 for a bit, scaled the same way.
    For cispo ε_high is the cap of the ratio itself: 5 for a bit, 1 + 4/√m at the other levels; ε is None, no bound.
    """
    shrink = 1 / math.sqrt({"bit": 1, "visual_token": bits_per_token, "sequence": bits_per_sample}[level])
    if loss == "cispo":
        return epsilon, 1 + (CISPO_CAP - 1) * shrink if epsilon_high is None else epsilon_high
    low = EPSILON * shrink if epsilon is None else epsilon
    if epsilon_high is None:
        epsilon_high = EPSILON_HIGH_DAPO * shrink if loss == "dapo" else low
    return low, epsilon_high


def importance_ratio(
    logp: Tensor, old_logp: Tensor, level: RatioLevel, mask: Tensor, drift: Tensor | None = None
) -> Tensor:
    """(B, T, M) π/π_old of each bit: its own, or exp of the mean log-ratio over its visual token or its sample.

    drift: KL(π_old‖π) of each bit, without gradient, which is taken out of the mean. Drawn from π_old, a log-ratio is
    -KL on average, whatever the advantage. Over many bits the mean narrows to that, and leaves a clip range that
    narrows with it on the lower side.

    The gradient is that of the mean: it reaches every bit of the token or the sample in equal parts, and summed over
    the bits again it is, on policy, the gradient of the bit level. Log-ratios are kept within ±20: an overflowing
    ratio times a zero gradient would be NaN.
    """
    log_ratio = logp - old_logp
    if drift is not None:
        log_ratio = log_ratio + drift
    if level != "bit":
        dims = (2,) if level == "visual_token" else (1, 2)
        mean = (log_ratio * mask).sum(dims, keepdim=True) / mask.sum(dims, keepdim=True).clamp(min=1)
        log_ratio = mean.expand_as(log_ratio)
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def clipped_terms(ratio: Tensor, advantages: Tensor, epsilon: float, epsilon_high: float) -> Terms:
    """-min(r·A, clip(r, 1 - ε, 1 + ε_high)·A), PPO's surrogate (1707.06347): grpo, dr_grpo, dapo and gspo."""
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon_high)
    loss = -torch.min(ratio * advantages, clipped * advantages)
    return Terms(loss, (ratio < 1 - epsilon) & (advantages < 0), (ratio > 1 + epsilon_high) & (advantages > 0))


def cispo_terms(logp: Tensor, ratio: Tensor, advantages: Tensor, epsilon: float | None, cap: float) -> Terms:
    """-sg(min(r, cap))·A·log π(b): the weight is bounded, and no bit loses its gradient (2506.13585).

    `cap` bounds the ratio itself, as in ScaleRL (2510.13786) and TRL, not its distance from 1. The original clips to
    [1 - ε, 1 + ε_high] and tunes the upper bound alone; the lower one is there when `epsilon` is.
    """
    floor = 0.0 if epsilon is None else 1 - epsilon
    weight = ratio.detach().clamp(floor, cap)
    return Terms(-weight * advantages * logp, (ratio < floor) & (advantages < 0), (ratio > cap) & (advantages > 0))


def dppo_tv_terms(logp: Tensor, old_logp: Tensor, ratio: Tensor, advantages: Tensor, delta: float) -> Terms:
    """-A·sg(min(r, 20))·log π(b)·keep, a trust region in total variation (2602.04879).

    A bit is dropped once its probability has moved by more than δ to where the advantage pushes it: kept are
    p(b) - p_old(b) ≤ δ for A > 0, and ≥ -δ otherwise. Exact for bits, where a vocabulary has to be lumped into two.
    """
    moved = logp.detach().exp() - old_logp.exp()
    low, high = (moved < -delta) & (advantages < 0), (moved > delta) & (advantages > 0)
    weight = ratio.detach().clamp(max=DPPO_MAX_RATIO) * ~(low | high)
    return Terms(-weight * advantages * logp, low, high)


def aggregate(terms: Tensor, mask: Tensor, how: Aggregation, normalizer: float | None = None) -> Tensor:
    """(B, T, M) terms of bits → a scalar.

    sample: mean over each sample's bits, then over samples (grpo, gspo). constant: each sample's sum over a constant,
    then the mean over samples (dr_grpo). batch: mean over all bits of the batch (dapo, cispo, dppo_tv). Images of one
    size have one N, and the three are the same up to a constant factor.
    """
    sums = (terms * mask).sum((1, 2))
    if how == "sample":
        return (sums / mask.sum((1, 2)).clamp(min=1)).mean()
    if how == "constant":
        return sums.mean() / (normalizer or terms[0].numel())
    return sums.sum() / (normalizer or mask.sum().clamp(min=1))


def importance_weights(
    old_logp: Tensor, rollout_logp: Tensor, cap: float, level: RatioLevel = "bit", mask: Tensor | None = None
) -> Tensor:
    """min(π_old/π_rollout, cap) without gradient, shaped as the log-probabilities: for LossInputs.weights.

    Truncated importance weights (1802.01561), where the old policy was replayed and the arithmetic of the rollout
    differs from the replay's. level: what one weight stands for, as in `importance_ratio`.
    """
    if level == "visual_token" and old_logp.ndim < 3:
        raise ValueError(f"weights at level visual_token need bits as (B, T, …), got shape {tuple(old_logp.shape)}.")
    exists = torch.ones_like(old_logp) if mask is None else _spread("mask", mask, old_logp.shape).to(old_logp.dtype)
    ratio = importance_ratio(_tokens(old_logp.detach()), _tokens(rollout_logp.detach()), level, _tokens(exists))
    return ratio.clamp(max=cap).reshape(old_logp.shape)


def _old_policy_metrics(inputs: LossInputs, terms: Terms, ratio: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """How far the policy is from the one that the ratio is taken to, and what the loss bounded."""
    with torch.no_grad():
        logp, old_logp = inputs.logp, inputs.old_logp
        if inputs.gap is not None and inputs.old_gap is not None:
            moved = bernoulli.total_variation(inputs.gap, inputs.old_gap)
        else:
            moved = (logp.exp() - old_logp.exp()).abs()
        moved = _tokens(moved) * mask
        return {
            "ratio/mean": _mean(ratio, mask),
            "ratio/max": (ratio * mask).amax(),
            "clip_ratio/low_mean": _mean(terms.low, mask),
            "clip_ratio/high_mean": _mean(terms.high, mask),
            "clip_ratio/region_mean": _mean(terms.low | terms.high, mask),
            "approx_kl": _mean(_tokens(bernoulli.kl_estimate(old_logp, logp, "k3")), mask),
            "tv/mean": _mean(moved, mask),
            "tv/max": moved.amax(),
        }


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return aggregate(values, mask, "batch")


def _tokens(values: Tensor) -> Tensor:
    """(B, T, L, S, K) → (B, T, M); (B, N) → (B, N, 1)"""
    return values[:, :, None] if values.ndim == 2 else values.flatten(2)


def _spread(name: str, values: Tensor, shape: torch.Size) -> Tensor:
    """(B,), (B, T), … → the whole shape, repeated over the dimensions it does not have."""
    if values.shape != shape[: values.ndim]:
        raise ValueError(f"{name} has shape {tuple(values.shape)}, expected the first dimensions of {tuple(shape)}.")
    return values.reshape(values.shape + (1,) * (len(shape) - values.ndim)).expand(shape)


def _check_settings(
    loss: str, level: str, epsilon: float | None, epsilon_high: float | None, delta: float | None
) -> None:
    for name, value, known in (("loss", loss, Loss), ("ratio_level", level, RatioLevel)):
        if value not in typing.get_args(known):
            raise UserError(f"algorithm.{name} is {value!r}, expected one of {', '.join(typing.get_args(known))}.")
    if found := conflicting_setting(loss, level, epsilon, epsilon_high, delta):
        raise UserError(found[1])
