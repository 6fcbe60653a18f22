"""The loss that an update minimises: pure functions of tensors, (PolicyInputs, LossSettings) → (loss, metrics).

A loss is three choices: the term of each bit (a clipped, capped or masked ratio times the advantage), the level that
its ratio stands for, and how terms are averaged. Each has a file in this folder; here is what they share: ratio,
average, KL and entropy terms, metrics. docs/algorithms.md has the formulas beside their papers.

Shapes: B samples · T visual tokens · L levels · S patches per token · K bits per code · N = T·L·S·K bits per sample.
Bits are shaped (B, T, …), in a run (B, T, L, S, K); the written tokens of texts are (B, T, 1), and what is said of a
bit holds for one of them.
"""

import torch
from torch import Tensor

from rl.algorithm import bernoulli
from rl.algorithm.bernoulli import MAX_LOG_RATIO
from rl.algorithm.losses.averaging import Aggregation, aggregate
from rl.algorithm.losses.inputs import PolicyInputs
from rl.algorithm.losses.loss import Terms
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


def policy_loss(inputs: PolicyInputs, settings: LossSettings) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss to minimise (a scalar with gradient) and its metrics (detached scalars, the same keys on every rank).

    Metrics: `policy_loss`, `ratio/mean`, `ratio/max`; where the loss says which bits it bounds (without gradient, or
    with a bounded weight), their share as `clip_ratio/low_mean`, `/high_mean`, `/region_mean`; towards the old policy
    `approx_kl` (k3), `tv/mean`, `tv/max`; `kl` where there is a reference, and `entropy` (both in nats per bit).

    Raises UserError for settings that no recipe may combine and for a plug-in's faults, ValueError for a KL term
    without a reference, and for a KL term or an entropy bonus without gradient.
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
            total = total + settings.beta * _term("the KL term", divergence, inputs, loss.aggregation)
    elif settings.beta:
        raise ValueError(f"beta is {settings.beta:g}, and the KL term needs a reference.")
    metrics["entropy"] = _mean(inputs.entropy, mask).detach()
    if settings.entropy_coef:
        total = total - settings.entropy_coef * _term("the entropy bonus", inputs.entropy, inputs, loss.aggregation)
    return total, metrics


def importance_ratio(inputs: PolicyInputs, settings: LossSettings) -> Tensor:
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
    each, exists = log_ratio.flatten(2), inputs.mask.flatten(2)
    if settings.level != "bit" and not (settings.level == "visual_token" and each.shape[2] == 1):
        if settings.centred:
            each = each + inputs.kl_from_old().flatten(2)
        dims = (2,) if settings.level == "visual_token" else (1, 2)
        mean = (each * exists).sum(dims, keepdim=True) / exists.sum(dims, keepdim=True).clamp(min=1)
        log_ratio = mean.expand_as(each).reshape(log_ratio.shape)
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return ratio if settings.importance_cap is None else ratio.clamp(max=settings.importance_cap)


def _old_policy_metrics(inputs: PolicyInputs, terms: Terms, ratio: Tensor) -> dict[str, Tensor]:
    """How far the policy is from the one that the ratio is taken to, and what the loss bounded."""
    mask = inputs.mask
    with torch.no_grad():
        moved = inputs.total_variation() * mask
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


def _term(name: str, values: Tensor, inputs: PolicyInputs, how: Aggregation) -> Tensor:
    """A term beside the policy's, averaged as that is."""
    if inputs.logp.requires_grad and not values.requires_grad:
        raise ValueError(f"{name} has a weight, but its values were given without gradient.")
    return aggregate(values, inputs.mask, how)
