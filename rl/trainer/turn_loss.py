"""The loss of one forward pass: drawn pictures by their bits, written texts by their tokens.

Shapes: R turns · T visual tokens · L levels · S patches per token · K bits per code · A text tokens.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor

from rl.algorithm.credit import prompt_credit
from rl.algorithm.losses import METRICS, LossInputs, TokenInputs, policy_loss
from rl.algorithm.metrics import Kind
from rl.config.recipe import blamed_on
from rl.config.sections import Recipe
from rl.policy.experts import Experts, measured
from rl.policy.turns import Pictures, Texts
from rl.trainer.forwards import Forward
from rl.trainer.step1_check import PARTS, TEXT_PARTS, parts, text_parts

TEXT = "text/"
"""before the names of what is measured of texts"""
MEASURED: dict[str, Kind] = {
    **METRICS,
    **{f"{TEXT}{name}": kind for name, kind in METRICS.items()},
    **PARTS,
    **TEXT_PARTS,
    "guidance/mismatch": "mean",
}

Found = tuple[Tensor, dict[str, Tensor]]


class TurnLoss:
    """Policy loss and KL term of turns, as the recipe says, and what is measured of them."""

    def __init__(self, recipe: Recipe, experts: Experts) -> None:
        """experts: whom the KL term measures from."""
        self.recipe, self.experts = recipe, experts
        self.guidance, self.temperature = recipe.rollout.guidance_settings, recipe.rollout.text_temperature
        self.bits, self.tokens = recipe.algorithm.loss_settings, recipe.algorithm.text_loss_settings
        self._from_rollout = recipe.algorithm.old_logp == "rollout"

    def __call__(self, model: Any, forward: Forward, beta: float | None, compare: bool) -> Found:
        """With gradient. beta: of the KL term, where it is steered. compare: also measure what lies between rollout and
        replay: nothing but rounding, where all is well."""
        rows = forward.rows()
        with blamed_on(self.recipe, "algorithm.loss"):
            if isinstance(rows, Texts):
                loss, metrics = self._of_texts(model, rows, forward.advantages, beta, compare, forward.positions)
            else:
                loss, metrics = self._of_pictures(model, rows, forward.advantages, beta, compare)
        return loss, measured(metrics, rows.expert)

    def _of_pictures(self, model: Any, rows: Pictures, advantages: Any, beta: float | None, compare: bool) -> Found:
        policy_gap, settings = self.guidance.policy_gap, self.bits
        gap, drawn_gap = policy_gap(rows.replay(model, self.guidance)), policy_gap(rows.drawn)
        replayed = gap.detach() if rows.old is None else policy_gap(rows.old)
        inputs = LossInputs(
            bits=rows.bits,
            gap=gap,
            old_gap=drawn_gap if self._from_rollout else replayed,
            ref_gap=None if rows.reference is None else self.experts[rows.expert].guidance.policy_gap(rows.reference),
            advantages=advantages,
            credit=None if self.recipe.algorithm.credit is None else prompt_credit(rows.drawn, self.guidance),
        )
        if rows.reference is None:  # a stand-in has none
            settings = replace(settings, beta=0.0)
        elif beta is not None:
            settings = replace(settings, beta=beta)
        loss, metrics = policy_loss(inputs, settings)
        if compare:
            metrics |= parts(gap.detach(), drawn_gap)
            if self.guidance.is_biased:
                metrics["guidance/mismatch"] = self.guidance.mismatch(rows.drawn).mean()
        return loss, metrics

    def _of_texts(
        self, model: Any, rows: Texts, advantages: Any, beta: float | None, compare: bool, positions: int
    ) -> Found:
        settings, section = self.tokens, self.recipe.algorithm.text
        exact = rows.reference_hidden is not None
        head = self.experts[rows.expert].reference.text_head if exact else None
        said = rows.replay(model, self.temperature, positions=positions, exact_kl=exact, head=head)
        inputs = TokenInputs(
            advantages=advantages,
            logp=said.log_probs,
            old_logp=rows.drawn if self._from_rollout else rows.old,
            mask=rows.mask,
            entropy=said.entropy,
            ref_logp=rows.reference,
            ref_kl=said.kl if exact else None,
        )
        if rows.reference is None:
            settings = replace(settings, beta=0.0)
        elif beta is not None and section.beta is None:
            settings = replace(settings, beta=beta)
        loss, measured = policy_loss(inputs, settings)
        metrics = {f"{TEXT}{name}": value for name, value in measured.items()}
        if compare:
            metrics |= text_parts(said.log_probs.detach(), rows.drawn, said.entropy.detach(), rows.mask)
        return loss * section.weight, metrics
