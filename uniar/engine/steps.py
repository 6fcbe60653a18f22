"""Steps over static buffers: all shapes are fixed, a step reads and writes at a cursor held in a tensor, and the host
waits for nothing, so that a step can be captured as a graph.

Shapes: U prompts · B = U·G samples · R rows (B, or 2B with guidance: conditional rows first) · P prefix positions ·
T visual tokens · L levels · S patches per token · K bits per code · H hidden.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from uniar.drawing_model import DrawingModel
from uniar.engine.layers import Rotary, empty_cache, layers_of, run_layer, run_layers, stream_scales
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
        self.model, self.layers, self.guidance_scale = model, layers_of(model), guidance_scale
        self.scales = stream_scales(self.layers)
        device, samples, tokens = model.device, len(prompt_index), noise.shape[1]
        rows = samples * len(prefixes)
        self.prefix_width = max(prefix.width for prefix in prefixes)
        slots = self.prefix_width + tokens
        self.keys, self.values = empty_cache(model, rows, slots), empty_cache(model, rows, slots)
        # What is added to scores: nothing, but on the padding of prefixes.
        self.scores = torch.zeros(rows, slots, dtype=model.dtype, device=device)
        hidden, positions = [], []
        for number, prefix in enumerate(prefixes):
            # One unconditional row may stand for all prompts.
            source = prompt_index if len(prefix.valid) > 1 else torch.zeros_like(prompt_index)
            start, stop = self.prefix_width - prefix.width, self.prefix_width
            mine = slice(number * samples, (number + 1) * samples)
            for cache, filled in ((self.keys, prefix.keys), (self.values, prefix.values)):
                for layer, tensor in zip(cache, filled, strict=True):
                    layer[mine, :, start:stop] = tensor[source]
            self.scores[mine, :start] = -torch.inf
            self.scores[mine, start:stop].masked_fill_(~prefix.valid[source], -torch.inf)
            hidden.append(prefix.last_hidden[source])
            positions.append(prefix.drawn_positions[:, source])
        self.hidden = torch.cat(hidden)[:, None]
        rotary = Rotary.of(model, torch.cat(positions, dim=1))
        self.cos, self.sin = rotary.cos.transpose(0, 1), rotary.sin.transpose(0, 1)
        # d* / T > logit(u), with T on the other side: at temperature 0 that is d* > 0, the greedy bit.
        below_one = 1 - torch.finfo(torch.float32).eps / 2
        uniforms = noise.to(device, torch.float32).clamp(torch.finfo(torch.float32).tiny, below_one).transpose(0, 1)
        self.thresholds = torch.logit(uniforms) * temperature
        self.bits = torch.empty(*self.thresholds.shape, dtype=torch.uint8, device=device)
        self.gaps = torch.empty(len(prefixes), *self.thresholds.shape, device=device) if keep_gaps else None
        self.slots = torch.arange(slots, device=device)
        self.cursor = torch.zeros(1, dtype=torch.long, device=device)
        self._filled: tuple[int | None, list[tuple[Tensor, Tensor]]] | None = None

    def rewind(self, hidden: Tensor) -> None:
        """Back to the first token, with the hidden states from before it. What was drawn is overwritten."""
        self.hidden.copy_(hidden)
        self.cursor.zero_()

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

    def begin(self) -> tuple[Tensor, list[Tensor], Tensor, Tensor, Tensor, Tensor]:
        """Draws the token under the cursor. Returns it as the layers of both branches take it: input embedding,
        deepstack features, cos, sin, its slot, and what is added to the scores of each slot."""
        self.sample()
        drawn = self.bits.index_select(0, self.cursor)[0]
        branches = len(self.hidden) // len(drawn)
        features = (f[:, None] for f in self.model.model.visual.language_features(drawn))
        main, *deepstack = (f if branches == 1 else f.repeat(branches, 1, 1) for f in features)
        main = main.to(self.hidden.dtype)  # under autocast it comes in another, and the stream would stay so
        deepstack = deepstack[: len(self.model.model.language_model.layers)]  # none behind visual decoder layers
        cos, sin = (table.index_select(0, self.cursor)[0][:, None] for table in (self.cos, self.sin))
        slot = self.cursor + self.prefix_width
        scores = self.scores.masked_fill(self.slots > slot, -torch.inf)
        return main, deepstack, cos, sin, slot, scores[:, None, None]

    def step(
        self, filled: int | None = None, begin: Callable[..., Any] | None = None, one: Callable[..., Tensor] = run_layer
    ) -> None:
        """Draws the token under the cursor, feeds it to both branches, and moves the cursor to the next.

        Attention reads the first `filled` slots (None: all), which must be those in use at least. `begin` and `one`
        stand in for the methods of these names.
        """
        main, deepstack, cos, sin, slot, scores = (begin or Steps.begin)(self)
        if self._filled is None or self._filled[0] != filled:
            caches = zip(self.keys, self.values, strict=True)
            self._filled = filled, [(keys[:, :, :filled], values[:, :, :filled]) for keys, values in caches]
        rotary, scores = Rotary(cos, sin), scores[..., :filled]
        hidden = run_layers(self.layers, self.scales, main, rotary, deepstack, self._filled[1], slot, scores, one)
        self.hidden.copy_(hidden)
        self.cursor += 1

    def result(self) -> Rollout:
        gaps = [] if self.gaps is None else [gap.transpose(0, 1).contiguous() for gap in self.gaps]
        return Rollout(self.bits.transpose(0, 1).contiguous(), *gaps)
