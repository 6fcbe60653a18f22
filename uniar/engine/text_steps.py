"""The steps of writing: a token of text at a time, through the backbone alone.

Shapes: B samples · N new tokens · V vocabulary · H hidden.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from uniar.drawing_model import DrawingModel
from uniar.engine.cached_steps import CachedSteps
from uniar.engine.prefix import Prefix


class TextSteps(CachedSteps):
    """The static buffers of one batch of samples, and a step. What comes behind a sample's end counts nothing."""

    def __init__(
        self,
        model: DrawingModel,
        prefix: Prefix,
        prompt_index: Tensor,
        noise: Tensor,
        ends: Sequence[int],
        pad: int,
        temperature: float,
    ) -> None:
        super().__init__(model, model.model.language_model.layers, [prefix], prompt_index, noise.shape[1])
        self.temperature, self.pad, device = temperature, pad, model.device
        self.ends = torch.tensor(list(ends), device=device)
        self.uniforms = noise.to(device, torch.float64).T.contiguous()
        self.tokens = self.drawn = torch.full(noise.T.shape, pad, device=device)
        self.log_probs = torch.zeros(noise.T.shape, device=device)
        self.lengths = torch.zeros(len(noise), dtype=torch.long, device=device)
        self.ended = torch.zeros(len(noise), dtype=torch.bool, device=device)

    def rewind(self, hidden: Tensor) -> None:
        super().rewind(hidden)
        self.lengths.zero_()
        self.ended.zero_()

    def sample(self) -> None:
        """Hidden states → the token under the cursor, by the inverse of its distribution: the first token up to which
        more probability lies than the sample's uniform number."""
        normed = self.model.model.language_model.norm(self.hidden[:, 0])
        logits = self.model.lm_head(normed).float()
        if self.temperature:
            logits = logits / self.temperature
        weights = (logits - logits.amax(-1, keepdim=True)).exp()
        # In float64 the sum over 150,000 entries has an order of its own to no digit that a choice depends on.
        below = weights.cumsum(-1, dtype=torch.float64)
        total = below[:, -1:]
        if self.temperature:
            uniform = self.uniforms.index_select(0, self.cursor)[0][:, None]
            # Of logits that are NaN nothing is found, and the token past the last would be an index out of range.
            token = torch.searchsorted(below, uniform * total, right=True).clamp(max=logits.shape[-1] - 1)
        else:
            token = logits.argmax(-1, keepdim=True)
        log_prob = weights.gather(-1, token).double().log() - total.log()
        token = token[:, 0].masked_fill(self.ended, self.pad)
        log_prob = log_prob[:, 0].float().masked_fill(self.ended, 0)
        self.tokens.index_copy_(0, self.cursor, token[None])
        self.log_probs.index_copy_(0, self.cursor, log_prob[None])
        self.lengths += ~self.ended
        self.ended |= (token[:, None] == self.ends).any(-1)

    def embed(self) -> tuple[Tensor, list[Tensor]]:
        tokens = self.tokens.index_select(0, self.cursor)[0]
        return self.model.model.get_input_embeddings()(tokens)[:, None], []
