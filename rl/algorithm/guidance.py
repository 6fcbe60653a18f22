"""Classifier-free guidance as part of the policy: which gap a bit was drawn from, and which gap is trained.

Raw gaps d_c (conditional branch) and d_u (unconditional branch) at T = 1 in, the policy's gap out. Guidance and
temperature are linear in the gap: d* = (d_u + s·(d_c - d_u)) / T. A convention is a class below: what it draws from,
what it differentiates, and what it costs. No other file knows one by its name.

The old policy goes through the same convention as the policy, and so does the reference, unless it has a guidance scale
of its own (rl/config/measured_from.py).
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from rl.algorithm.bernoulli import kl


class Gaps(NamedTuple):
    """Raw logit gaps l₁ - l₀ in float32, before guidance and temperature."""

    cond: Tensor
    """(B, T, L, S, K)"""
    uncond: Tensor | None
    """(B, T, L, S, K), or None where the convention has one branch"""


class Convention:
    """A way to put guidance into the policy. Subclasses say which branches it runs; one with another formula than
    d_u + s·(d_c - d_u) overrides `combined`."""

    name: ClassVar[str]
    """as `rollout.guidance` has it"""
    help: ClassVar[str]
    """for docs/config.md"""
    draws_unconditional: ClassVar[bool]
    """A rollout runs both branches: twice the caches, and gaps of both are kept."""
    replays_unconditional: ClassVar[bool]
    """The policy that is trained is the guided one: replays run both branches, and gaps of both are kept."""
    trains_unconditional: ClassVar[bool]
    """The gradient goes through both branches: an update runs twice the rows."""

    def combined(self, gaps: Gaps, scale: float) -> Tensor:
        if gaps.uncond is None:
            raise ValueError(f"guidance {self.name} needs the gaps of the unconditional branch.")
        return gaps.uncond + scale * (gaps.cond - gaps.uncond)


class Unguided(Convention):
    name = "none"
    help = "one branch, no guidance."
    draws_unconditional = replays_unconditional = trains_unconditional = False


class Guided(Convention):
    name = "guided"
    help = "sampled from the guided policy, gradient through both branches."
    draws_unconditional = replays_unconditional = trains_unconditional = True


class GuidedDetach(Convention):
    name = "guided_detach"
    help = "the same, no gradient through the unconditional branch."
    draws_unconditional = replays_unconditional = True
    trains_unconditional = False


class Conditional(Convention):
    """Biased, common elsewhere; `GuidanceSettings.mismatch` measures how far."""

    name = "conditional"
    help = "sampled guided, trained as if the conditional branch had sampled (biased; common elsewhere)."
    draws_unconditional = True
    replays_unconditional = trains_unconditional = False


CONVENTIONS: dict[str, Convention] = {kind.name: kind() for kind in (Unguided, Guided, GuidedDetach, Conditional)}


@dataclass(frozen=True)
class GuidanceSettings:
    """What turns raw gaps into the policy's: a convention, its scale s, and the temperature T.

    Raises ValueError for an unknown convention, and for T ≤ 0.
    """

    name: str = "none"
    """the convention's"""
    scale: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in CONVENTIONS:
            raise ValueError(f"unknown guidance convention {self.name!r}; expected one of {', '.join(CONVENTIONS)}.")
        if not self.temperature > 0:
            raise ValueError(
                f"temperature is {self.temperature:g}; a policy needs one above 0 (0 is greedy: nothing is drawn)."
            )

    @property
    def convention(self) -> Convention:
        return CONVENTIONS[self.name]

    @property
    def drawing_scale(self) -> float | None:
        """The scale that a rollout guides with; None: it runs the conditional branch alone."""
        return self.scale if self.convention.draws_unconditional else None

    def drawn_gap(self, gaps: Gaps) -> Tensor:
        """The gap that the bits were drawn from, shaped as the raw gaps. Raises ValueError for a missing branch."""
        guided = self.convention.draws_unconditional
        return (self.convention.combined(gaps, self.scale) if guided else gaps.cond) / self.temperature

    def policy_gap(self, gaps: Gaps) -> Tensor:
        """The gap that log-probabilities, KL and entropy are taken of, with gradients as the convention says. Raises
        ValueError for a missing branch."""
        if not self.convention.replays_unconditional:
            return gaps.cond / self.temperature
        if not self.convention.trains_unconditional and gaps.uncond is not None:
            gaps = gaps._replace(uncond=gaps.uncond.detach())
        return self.convention.combined(gaps, self.scale) / self.temperature

    @property
    def is_biased(self) -> bool:
        """Whether what is trained is not what drew."""
        return self.convention.draws_unconditional and not self.convention.replays_unconditional

    def mismatch(self, gaps: Gaps) -> Tensor:
        """What a biased convention gets wrong: KL(drawn‖trained) of each bit in nats, exact, without gradient.

        Shaped as the gaps; 0 everywhere at s = 1. Its sum over the bits of an image is the divergence between the
        distribution that drew the image and the one that is trained, estimated on the drawn prefixes.
        """
        return kl(self.drawn_gap(gaps).detach(), self.policy_gap(gaps).detach())
