"""The steps of drawing: the bits of a visual token at a time, of one branch or guided by two.

Shapes: U prompts · B = U·G samples · R rows (B, or 2B with guidance: conditional rows first) · T visual tokens ·
L levels · S patches per token · K bits per code · H hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from uniar.drawing_model import DrawingModel
from uniar.engine.cached_steps import CachedSteps
from uniar.engine.layers import layers_of
from uniar.engine.prefix import Prefix


@dataclass(frozen=True)
class Rollout:
    """Drawn bits, and the raw logit gaps l₁ - l₀ they were drawn from, before guidance and temperature."""

    bits: Tensor
    """(B, T, L, S, K) uint8"""
    gap_cond: Tensor | None = None
    """(B, T, L, S, K) float32, conditional branch"""
    gap_uncond: Tensor | None = None
    """(B, T, L, S, K) float32, unconditional branch; None without guidance"""


class Steps(CachedSteps):
    """The static buffers of one batch of samples, and a step."""

    def __init__(
        self,
        model: DrawingModel,
        prefixes: Sequence[Prefix],
        prompt_index: Tensor,
        noise: Tensor,
        guidance_scale: float | None,
        temperature: float,
        *,
        keep_gaps: bool,
    ) -> None:
        super().__init__(model, layers_of(model), prefixes, prompt_index, noise.shape[1])
        self.guidance_scale, device = guidance_scale, model.device
        # d* / T > logit(u), with T on the other side: at temperature 0 that is d* > 0, the greedy bit.
        below_one = 1 - torch.finfo(torch.float32).eps / 2
        uniforms = noise.to(device, torch.float32).clamp(torch.finfo(torch.float32).tiny, below_one).transpose(0, 1)
        self.thresholds = torch.logit(uniforms) * temperature
        self.bits = self.drawn = torch.empty(*self.thresholds.shape, dtype=torch.uint8, device=device)
        self.gaps = torch.empty(len(prefixes), *self.thresholds.shape, device=device) if keep_gaps else None

    @property
    def shape(self) -> tuple[Any, ...]:
        return *super().shape, self.gaps is None

    def sample(self) -> None:
        """Hidden states → the bits of the visual token under the cursor."""
        logits = self.model.visual_logits(self.hidden[:, 0]).float()
        raw = logits[..., 1] - logits[..., 0]
        if self.guidance_scale is None:
            raw = gap = raw[None]
        else:
            raw = raw.unflatten(0, (2, -1))
            gap = raw[1] + self.guidance_scale * (raw[0] - raw[1])
        threshold = self.thresholds.index_select(0, self.cursor)
        self.bits.index_copy_(0, self.cursor, (gap.view_as(threshold) > threshold).to(torch.uint8))
        if self.gaps is not None:
            self.gaps.index_copy_(1, self.cursor, raw[:, None])

    def embed(self) -> tuple[Tensor, list[Tensor]]:
        drawn = self.bits.index_select(0, self.cursor)[0]
        branches = len(self.hidden) // len(drawn)
        features = (f[:, None] for f in self.model.model.visual.language_features(drawn))
        main, *deepstack = (f if branches == 1 else f.repeat(branches, 1, 1) for f in features)
        return main, deepstack[: len(self.model.model.language_model.layers)]  # none behind visual decoder layers

    def result(self) -> Rollout:
        gaps = [] if self.gaps is None else [gap.transpose(0, 1).contiguous() for gap in self.gaps]
        return Rollout(self.bits.transpose(0, 1).contiguous(), *gaps)
