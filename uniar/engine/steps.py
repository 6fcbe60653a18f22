"""Steps over static buffers: all shapes are fixed, a step reads and writes at a cursor held in a tensor, and the host
waits for nothing, so that a step can be captured as a graph.

Shapes: U prompts · B = U·G samples · R rows (B, or 2B with guidance: conditional rows first) · P prefix positions ·
T visual tokens · L levels · S patches per token · K bits per code · H hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from uniar.drawing_model import DrawingModel
from uniar.engine.layers import empty_cache, layers_of, run_layers
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


class Steps:
    """The static buffers of one batch of samples, and the two halves of a step: `sample` and `advance`."""

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
        self.model, self.layers, self.guidance_scale = model, layers_of(model), guidance_scale
        device, samples, tokens = model.device, len(prompt_index), noise.shape[1]
        rows = samples * len(prefixes)
        self.prefix_width = max(prefix.width for prefix in prefixes)
        slots = self.prefix_width + tokens
        self.keys, self.values = empty_cache(model, rows, slots), empty_cache(model, rows, slots)
        self.valid = torch.ones(rows, slots, dtype=torch.bool, device=device)
        hidden, positions = [], []
        for number, prefix in enumerate(prefixes):
            # One unconditional row may stand for all prompts.
            source = prompt_index if len(prefix.valid) > 1 else torch.zeros_like(prompt_index)
            start, stop = self.prefix_width - prefix.width, self.prefix_width
            mine = slice(number * samples, (number + 1) * samples)
            for cache, filled in ((self.keys, prefix.keys), (self.values, prefix.values)):
                for layer, tensor in zip(cache, filled, strict=True):
                    layer[mine, :, start:stop] = tensor[source]
            self.valid[mine, :start] = False
            self.valid[mine, start:stop] = prefix.valid[source]
            hidden.append(prefix.last_hidden[source])
            positions.append(prefix.drawn_positions[:, source])
        self.hidden = torch.cat(hidden)[:, None]
        cos, sin = model.model.language_model.rotary_emb(self.keys[0], torch.cat(positions, dim=1))
        self.cos, self.sin = cos.transpose(0, 1), sin.transpose(0, 1)
        # d* / T > logit(u), with T on the other side: at temperature 0 that is d* > 0, the greedy bit.
        below_one = 1 - torch.finfo(torch.float32).eps / 2
        uniforms = noise.to(device, torch.float32).clamp(torch.finfo(torch.float32).tiny, below_one).transpose(0, 1)
        self.thresholds = torch.logit(uniforms) * temperature
        self.bits = torch.empty(*self.thresholds.shape, dtype=torch.uint8, device=device)
        self.gaps = torch.empty(len(prefixes), *self.thresholds.shape, device=device) if keep_gaps else None
        self.slots = torch.arange(slots, device=device)
        self.cursor = torch.zeros(1, dtype=torch.long, device=device)

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

    def advance(self) -> None:
        """Feeds the token under the cursor to both branches, and moves the cursor to the next."""
        drawn = self.bits.index_select(0, self.cursor)[0]
        branches = len(self.hidden) // len(drawn)
        main, *deepstack = (f.repeat(branches, 1)[:, None] for f in self.model.model.visual.language_features(drawn))
        deepstack = deepstack[: len(self.model.model.language_model.layers)]  # none behind visual decoder layers
        slot = self.cursor + self.prefix_width
        visible = (self.valid & (self.slots <= slot))[:, None, None]
        rotary = (self.cos.index_select(0, self.cursor)[0][:, None], self.sin.index_select(0, self.cursor)[0][:, None])
        hidden = run_layers(self.layers, main, rotary, deepstack, self.keys, self.values, slot, visible)
        if self.hidden.dtype == hidden.dtype:
            self.hidden.copy_(hidden)
        else:  # only the first time: under autocast a prefix ends in the embeddings' precision, a step in autocast's
            self.hidden = hidden
        self.cursor += 1

    def result(self) -> Rollout:
        gaps = [] if self.gaps is None else [gap.transpose(0, 1).contiguous() for gap in self.gaps]
        return Rollout(self.bits.transpose(0, 1).contiguous(), *gaps)
