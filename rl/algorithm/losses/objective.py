"""The loss that an update minimises: pure functions of tensors, (LossInputs, LossSettings) → (loss, metrics).

A loss is three choices: the term of each bit (a clipped, capped or masked ratio times the advantage), the level that
its ratio stands for, and how terms are averaged. Each has a file in this folder; here is what they share: ratio,
average, KL and entropy terms, metrics. docs/algorithms.md has the formulas beside their papers.

Shapes: B samples · T visual tokens · L levels · S patches per token · K bits per code · N = T·L·S·K bits per sample.
Bits are shaped (B, T, …), in a run (B, T, L, S, K).
"""

import torch
from torch import Tensor

from rl.algorithm import bernoulli
from rl.algorithm.bernoulli import MAX_LOG_RATIO
from rl.algorithm.losses.inputs import LossInputs
from rl.algorithm.losses.loss import Aggregation, Terms
from rl.algorithm.losses.registry import loss_named
from rl.algorithm.losses.settings import LossSettings
from rl.algorithm.metrics import Kind

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


def policy_loss(inputs: LossInputs, settings: LossSettings) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss to minimise (a scalar with gradient) and its metrics (detached scalars, the same keys on every rank).

    Metrics: `policy_loss`, `ratio/mean`, `ratio/max`; where the loss says which bits it bounds (without gradient, or
    with a bounded weight), their share as `clip_ratio/low_mean`, `/high_mean`, `/region_mean`; towards the old policy
    `approx_kl` (k3), `tv/mean`, `tv/max`; `kl` where there is a reference, and `entropy` (both in nats per bit).

    Raises UserError for settings that no recipe may combine and for a plug-in's faults, ValueError for a KL term
    without a reference.
    """
    loss = loss_named(settings.loss)
    settings, mask = loss.checked(settings), inputs.mask
    ratio = importance_ratio(inputs, settings)
    terms = loss.terms(inputs, ratio, settings)
    total = aggregate(terms.loss, mask, loss.aggregation)
    metrics = {"policy_loss": total.detach(), **_old_policy_metrics(inputs, terms, ratio)}
    divergence = inputs.kl_to_reference(settings.kl)
    if divergence is not None:
        metrics["kl"] = _mean(divergence, mask).detach()
        if settings.beta:
            total = total + settings.beta * aggregate(divergence, mask, loss.aggregation)
    elif settings.beta:
        raise ValueError(f"beta is {settings.beta:g}, and the KL term needs ref_gap.")
    entropy = _mean(bernoulli.entropy(inputs.gap), mask)
    metrics["entropy"] = entropy.detach()
    if settings.entropy_coef:
        total = total - settings.entropy_coef * entropy
    return total, metrics


def importance_ratio(inputs: LossInputs, settings: LossSettings) -> Tensor:
    """π/π_old of each bit, shaped as the gaps: its own, or exp of the mean log-ratio over its visual token or its
    sample; at most `importance_cap`.

    centred: KL(π_old‖π) of each bit, without gradient, is taken out of a mean. Drawn from π_old, a log-ratio is -KL on
    average, whatever the advantage. Over many bits the mean narrows to that, and leaves a clip range that narrows with
    it on the lower side.

    The gradient is that of the mean: it reaches every bit of the token or the sample in equal parts, and summed over
    the bits again it is, on policy, the gradient of the bit level. Log-ratios are kept within ±20: an overflowing
    ratio times a zero gradient would be NaN.
    """
    log_ratio = inputs.logp - inputs.old_logp
    assert inputs.mask is not None  # as LossInputs makes it
    if settings.level != "bit":
        if settings.centred:
            log_ratio = log_ratio + inputs.kl_from_old()
        each, exists = log_ratio.flatten(2), inputs.mask.flatten(2)
        dims = (2,) if settings.level == "visual_token" else (1, 2)
        mean = (each * exists).sum(dims, keepdim=True) / exists.sum(dims, keepdim=True).clamp(min=1)
        log_ratio = mean.expand_as(each).reshape(log_ratio.shape)
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return ratio if settings.importance_cap is None else ratio.clamp(max=settings.importance_cap)


def aggregate(terms: Tensor, mask: Tensor, how: Aggregation) -> Tensor:
    """Terms of bits (B, T, …) → a scalar.

    sample: mean over each sample's bits, then over samples. constant: each sample's sum over N, then the mean over
    samples. batch: mean over all bits of the batch. Images of one size have one N, and the three are the same.
    """
    sums = (terms * mask).flatten(2).sum((1, 2))
    if how == "sample":
        return (sums / mask.flatten(2).sum((1, 2)).clamp(min=1)).mean()
    if how == "constant":
        return sums.mean() / terms[0].numel()
    return sums.sum() / mask.sum().clamp(min=1)


def _old_policy_metrics(inputs: LossInputs, terms: Terms, ratio: Tensor) -> dict[str, Tensor]:
    """How far the policy is from the one that the ratio is taken to, and what the loss bounded."""
    mask = inputs.mask
    with torch.no_grad():
        moved = bernoulli.total_variation(inputs.gap, inputs.old_gap) * mask
        found = {
            "ratio/mean": _mean(ratio, mask),
            "ratio/max": (ratio * mask).amax(),
            "approx_kl": _mean(bernoulli.kl_estimate(inputs.old_logp, inputs.logp, "k3"), mask),
            "tv/mean": _mean(moved, mask),
            "tv/max": moved.amax(),
        }
        if terms.low is not None and terms.high is not None:
            found["clip_ratio/low_mean"] = _mean(terms.low, mask)
            found["clip_ratio/high_mean"] = _mean(terms.high, mask)
            found["clip_ratio/region_mean"] = _mean(terms.low | terms.high, mask)
        return found


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return aggregate(values, mask, "batch")
