"""What a recipe can say of the loss: see rl/config/sections.py."""

# ruff: noqa: RUF009 (`setting` wraps dataclasses.field, which the rule would let pass)

import dataclasses
from collections.abc import Mapping
from typing import Literal

from rl.algorithm.advantages import Estimator
from rl.algorithm.group_statistics import Scale
from rl.algorithm.losses import LOSSES, LossSettings, loss_named
from rl.algorithm.losses.settings import ConflictingSetting, KLKind, RatioLevel
from rl.config.measured_from import MeasuredFrom
from uniar.reading.settings import PluginName, setting


def _grouped(said: Mapping[str, str]) -> str:
    """What is said of each loss, those together of which the same is: "this, that: … other: …"."""
    names: dict[str, list[str]] = {}
    for name, text in said.items():
        names.setdefault(text, []).append(name)
    return " ".join(f"{', '.join(found)}: {text}." for text, found in names.items())


def _of_losses(key: str) -> str:
    return _grouped({loss.name: loss.takes[key] for loss in LOSSES.values() if key in loss.takes})


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

    target: float = setting(
        "KL to the reference that beta is steered to, in nats per bit, as the metric kl. Where algorithm.reference "
        "sets a guidance scale or temperature, KL begins above 0, because the reference draws otherwise than rollouts "
        "from the start: a target below that pulls the policy to it.",
        gt=0,
    )
    rate: float = setting("Gain of the controller: at 0.1 beta changes by 2 % per update at most.", 0.1, gt=0, le=1)


@dataclasses.dataclass(frozen=True)
class ReferenceRefreshSection:
    """A reference that follows the policy: (1 − mix) · reference + mix · policy after every so many updates."""

    every: int = setting("Updates between two refreshes.", ge=1)
    mix: float = setting(
        "Share of the policy in the refreshed reference; 1: the policy itself. LoRA needs 1.", 1.0, gt=0, le=1
    )


@dataclasses.dataclass(frozen=True)
class TextSection:
    """What samples write is trained with the same loss, token by token, unless the loss has one ratio per sample."""

    weight: float = setting("Weight of the loss of texts, which is averaged over texts alone.", 1.0, ge=0)
    epsilon: float | None = setting(
        "As algorithm.epsilon, for tokens in place of bits; null: the loss's default, whatever algorithm.epsilon is.",
        None,
        gt=0,
    )
    epsilon_high: float | None = setting("As algorithm.epsilon_high, in the same way.", None, gt=0)
    beta: float | None = setting(
        "Weight of the KL divergence of texts to the reference policy; null: as algorithm.beta, and with it where "
        "algorithm.kl_control steers it.",
        None,
        ge=0,
    )
    kl: KLKind = setting(
        "The KL divergence over the whole vocabulary, or one of the sampled estimators, from the written token.",
        "exact",
    )


@dataclasses.dataclass(frozen=True)
class AlgorithmSection:
    """The loss. Formulas and papers are in docs/algorithms.md."""

    loss: Literal[tuple(LOSSES)] | PluginName = setting(
        "The policy loss, or a function of your own in its place, see docs/algorithms.md. The papers: "
        f"{'; '.join(loss.paper for loss in LOSSES.values())}.",
        next(iter(LOSSES)),
    )
    ratio_level: RatioLevel | None = setting(
        "What one importance ratio stands for: a bit, a visual token (mean over its bits) or the whole image; null: "
        f"the loss's own. {_grouped({loss.name: loss.levels[0] for loss in LOSSES.values()})}",
        None,
    )
    centred_ratio: bool = setting(
        "For a ratio that is a mean over bits: remove the KL divergence to the old policy, so that it is 1 on "
        "average however far the policy has moved. false: the form that the papers have.",
        True,
    )
    epsilon: float | None = setting(
        f"Bound of a ratio from below, m being the bits that one ratio stands for. {_of_losses('epsilon')}",
        None,
        gt=0,
    )
    epsilon_high: float | None = setting(
        f"Bound of a ratio from above. {_of_losses('epsilon_high')}",
        None,
        gt=0,
    )
    delta: float | None = setting(f"Bound of something other than the ratio. {_of_losses('delta')}", None, gt=0, le=1)
    beta: float = setting(
        "Weight of the KL divergence to the reference policy; 0: none.",
        0.01,
        ge=0,
        fixed="algorithm.kl_control has steered it since",
    )
    kl: KLKind = setting(
        "The KL divergence in closed form, or one of the sampled estimators, for comparison with other work.", "exact"
    )
    kl_control: KLControlSection | None = setting(
        "Adapt beta so that the policy keeps a given KL to the reference, starting from beta. null: beta is fixed.",
        None,
    )
    reference_refresh: ReferenceRefreshSection | None = setting(
        "Let the reference follow the policy; null: it stays as it was at the start.", None
    )
    reference: MeasuredFrom = setting(
        "How the reference of the KL term draws: guided further than rollouts, or at a lower temperature, it teaches "
        "the policy to draw like that. See docs/algorithms.md.",
        factory=MeasuredFrom,
    )
    credit: Literal["prompt"] | None = setting(
        "prompt: the bits that the prompt changes get more of an image's advantage, and the others less, see "
        "docs/algorithms.md. null: all bits alike. Written text has none.",
        None,
    )
    text: TextSection = setting("The loss of what samples write.", factory=TextSection)
    advantage: AdvantageSection = setting("How rewards become advantages.", factory=AdvantageSection)
    entropy_coef: float = setting("Weight of an entropy bonus.", 0.0)
    loss_scale: float = setting(
        "Factor of the whole loss: policy loss, KL term and entropy bonus. Adam alone is not affected by it; with "
        "trainer.max_grad_norm it decides what is clipped. docs/migrating.md has those of UniAR's losses.",
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
        "its logit gaps may be from 1. null: 1e-3 in float32, 0.03 in bfloat16.",
        None,
        gt=0,
    )

    def of_distillation(self) -> "AlgorithmSection":
        """The same where the loss is the KL divergence to experts alone: samples have advantages of 0 then."""
        own = {"epsilon": None, "epsilon_high": None, "kl": "exact"}
        texts = dataclasses.replace(self.text, beta=None, **own)
        loss = {"loss": "grpo", "ratio_level": None, "delta": None, "beta": 1.0, "old_logp": "rollout", **own}
        unused = {"advantage": AdvantageSection(), "reference": MeasuredFrom(), "credit": None}
        return dataclasses.replace(self, text=texts, **unused, **loss)

    @property
    def has_kl_term(self) -> bool:
        """Whether the loss measures from a reference, be it of bits or of texts."""
        return self.beta > 0 or bool(self.text.beta)

    @property
    def loss_settings(self) -> LossSettings:
        """What the policy loss is told, its ratio level filled in. Raises ConflictingSetting for settings that do not
        go together."""
        settings = LossSettings(
            self.loss,
            level=self.ratio_level,
            epsilon=self.epsilon,
            epsilon_high=self.epsilon_high,
            delta=self.delta,
            centred=self.centred_ratio,
            importance_cap=self.importance_cap if self.old_logp == "rollout" else None,
            beta=self.beta,
            kl=self.kl,
            entropy_coef=self.entropy_coef,
        )
        return loss_named(self.loss).checked(settings)

    @property
    def text_loss_settings(self) -> LossSettings:
        """The same for written tokens: `text` has their ranges and their KL term, the ratio level is the loss's own and
        never centred (docs/algorithms.md), the rest is as for bits. Raises ConflictingSetting likewise."""
        settings = dataclasses.replace(
            self.loss_settings,
            level=None,
            epsilon=self.text.epsilon,
            epsilon_high=self.text.epsilon_high,
            centred=False,
            beta=self.beta if self.text.beta is None else self.text.beta,
            kl=self.text.kl,
        )
        try:
            return loss_named(self.loss).checked(settings)
        except ConflictingSetting as error:
            raise ConflictingSetting(f"text.{error.key}", error.found) from None
