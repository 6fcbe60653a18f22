"""What a recipe can say of the loss: see rl/config/sections.py."""

# ruff: noqa: RUF009 (`setting` wraps dataclasses.field, which the rule would let pass)

import dataclasses
from typing import Literal

from rl.algorithm.advantages import Estimator, Scale
from rl.algorithm.loss_settings import Loss, RatioLevel
from uniar.reading.settings import setting


@dataclasses.dataclass(frozen=True)
class AdvantageSection:
    """How rewards become advantages."""

    estimator: Estimator = setting(
        "grpo: the weighted sum of rewards minus its group mean. rloo: minus the mean of the other samples of the "
        "group. gdpo: each reward normalised in its group first, then weighted and summed.",
        "grpo",
    )
    scale: Scale = setting("Divide by the standard deviation of the group, of the whole batch, or not at all.", "group")


@dataclasses.dataclass(frozen=True)
class KLControlSection:
    """An adaptive weight of the KL term, beta · (1 + rate · clip(KL / target − 1, −0.2, 0.2)) after each update."""

    target: float = setting("KL to the reference that beta is steered to, in nats per bit, as the metric kl.", gt=0)
    rate: float = setting("Gain of the controller: at 0.1 beta changes by 2 % per update at most.", 0.1, gt=0, le=1)


@dataclasses.dataclass(frozen=True)
class ReferenceRefreshSection:
    """A reference that follows the policy: (1 − mix) · reference + mix · policy after every so many updates."""

    every: int = setting("Updates between two refreshes.", ge=1)
    mix: float = setting(
        "Share of the policy in the refreshed reference; 1: the policy itself. LoRA needs 1.", 1.0, gt=0, le=1
    )


@dataclasses.dataclass(frozen=True)
class AlgorithmSection:
    """The loss. Formulas and papers are in docs/algorithms.md."""

    loss: Loss = setting("The policy loss.", "grpo")
    ratio_level: RatioLevel | None = setting(
        "What one importance ratio stands for: a bit, a visual token (mean over its bits) or the whole image; "
        "null: sequence for gspo, else bit.",
        None,
    )
    centred_ratio: bool = setting(
        "For a ratio that is a mean over bits: remove the KL divergence to the old policy, so that it is 1 on "
        "average however far the policy has moved. false: GSPO's own form.",
        True,
    )
    epsilon: float | None = setting(
        "Clip range of the ratio, downwards (and upwards where epsilon_high is null); null: the default of the ratio "
        "level, 0.2 for a bit, smaller by the square root of the number of bits for a visual token or an image.",
        None,
        gt=0,
    )
    epsilon_high: float | None = setting(
        "Clip range upwards; null: as epsilon, or the loss's own default. For cispo it is the cap of the ratio itself, "
        "as in TRL.",
        None,
        gt=0,
    )
    delta: float | None = setting(
        "Only for dppo_tv: how far a bit's probability may move from the old policy's; null: the loss's default.",
        None,
        gt=0,
        le=1,
    )
    beta: float = setting(
        "Weight of the KL divergence to the reference policy; 0: none.",
        0.01,
        ge=0,
        fixed="algorithm.kl_control has steered it since",
    )
    kl: Literal["exact", "k1", "k2", "k3"] = setting(
        "The KL divergence in closed form, or one of the sampled estimators, for comparison with other work.", "exact"
    )
    kl_control: KLControlSection | None = setting(
        "Adapt beta so that the policy keeps a given KL to the reference, starting from beta. null: beta is fixed.",
        None,
    )
    reference_refresh: ReferenceRefreshSection | None = setting(
        "Let the reference follow the policy; null: it stays as it was at the start.", None
    )
    advantage: AdvantageSection = setting("How rewards become advantages.", factory=AdvantageSection)
    entropy_coef: float = setting("Weight of an entropy bonus.", 0.0)
    loss_scale: float = setting(
        "Factor of the whole loss: policy loss, KL term and entropy bonus. Adam alone is not affected by it; with "
        "trainer.max_grad_norm it decides what is clipped. 1024 (the bits of a visual token) makes dapo UniAR's own.",
        1.0,
        gt=0,
    )
    num_iterations: int = setting("How many times each rollout is trained on.", 1, ge=1)
    old_logp: Literal["replay", "rollout"] = setting(
        "Old log-probabilities: replay recomputes them before the first update (where a rollout serves several), "
        "rollout takes those of the rollout itself, with truncated importance weights for the mismatch.",
        "replay",
    )
    importance_cap: float = setting("Cap of those importance weights, with old_logp rollout.", 2.0, gt=0)
    step1_tolerance: float | None = setting(
        "How far the replayed policy may be from the one that drew, at the first step: mean |Δ log π| per bit, as a "
        "share of the entropy and divided by √(s² + (s − 1)²)/T of guidance and temperature; and how far the scale of "
        "its logit gaps may be from 1. null: 1e-3 in float32, 0.05 in bfloat16.",
        None,
        gt=0,
    )

    @property
    def level(self) -> RatioLevel:
        """The ratio level, the default of the loss filled in."""
        return self.ratio_level or ("sequence" if self.loss == "gspo" else "bit")
