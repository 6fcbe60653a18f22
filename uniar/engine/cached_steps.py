"""Steps over static buffers: all shapes are fixed, a step reads and writes at a cursor held in a tensor, and the host
waits for nothing, so that a step can be captured as a graph.

Shapes: U prompts · B samples · R rows of them · P prefix positions · T new tokens · H hidden.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from uniar.drawing_model import DrawingModel
from uniar.engine.layers import Rotary, empty_cache, run_layer, run_layers, stream_scales
from uniar.engine.prefix import Prefix


class CachedSteps(ABC):
    """The static buffers of one batch of rows, and a step: a token is sampled for each sample and fed to its rows."""

    drawn: Tensor
    """(T, B, …) what is sampled, token by token"""

    def __init__(
        self,
        model: DrawingModel,
        layers: Sequence[nn.Module],
        prefixes: Sequence[Prefix],
        prompt_index: Tensor,
        tokens: int,
    ) -> None:
        """prefixes: of each branch; a sample has a row in each, the rows of the first branch first."""
        self.model, self.layers, self.scales = model, layers, stream_scales(layers)
        device, samples = model.device, len(prompt_index)
        rows = samples * len(prefixes)
        self.prefix_width = max(prefix.width for prefix in prefixes)
        slots = self.prefix_width + tokens
        self.keys, self.values = (empty_cache(model, layers, rows, slots) for _ in range(2))
        # What is added to scores: nothing, but on the padding of prefixes.
        self.scores = torch.zeros(rows, slots, dtype=model.dtype, device=device)
        hidden, positions = [], []
        for number, prefix in enumerate(prefixes):
            # One row may stand for all prompts.
            source = prompt_index if len(prefix.valid) > 1 else torch.zeros_like(prompt_index)
            start, stop = self.prefix_width - prefix.width, self.prefix_width
            mine = slice(number * samples, (number + 1) * samples)
            for cache, filled in ((self.keys, prefix.keys), (self.values, prefix.values)):
                for layer, tensor in zip(cache, filled, strict=True):
                    layer[mine, :, start:stop] = tensor[source]
            self.scores[mine, :start] = -torch.inf
            self.scores[mine, start:stop].masked_fill_(~prefix.valid[source], -torch.inf)
            hidden.append(prefix.last_hidden[source])
            positions.append(prefix.new_positions[:, source])
        self.hidden = torch.cat(hidden)[:, None]
        rotary = Rotary.of(model, torch.cat(positions, dim=1))
        self.cos, self.sin = rotary.cos.transpose(0, 1), rotary.sin.transpose(0, 1)
        self.slots = torch.arange(slots, device=device)
        self.cursor = torch.zeros(1, dtype=torch.long, device=device)
        self._filled: tuple[int | None, list[tuple[Tensor, Tensor]]] | None = None

    @property
    def shape(self) -> tuple[Any, ...]:
        """What must be the same for two batches to run the same operators on the same shapes."""
        return type(self), len(self.hidden), len(self.slots)

    def rewind(self, hidden: Tensor) -> None:
        """Back to the first token, with the hidden states from before it. What was sampled is overwritten."""
        self.hidden.copy_(hidden)
        self.cursor.zero_()

    @abstractmethod
    def sample(self) -> None:
        """Hidden states → the token under the cursor."""

    @abstractmethod
    def embed(self) -> tuple[Tensor, list[Tensor]]:
        """The token under the cursor as the layers take it: input embeddings (R, 1, H) and deepstack features."""

    def begin(self) -> tuple[Tensor, list[Tensor], Tensor, Tensor, Tensor, Tensor]:
        """Samples the token under the cursor. Returns it as the layers of all branches take it: input embedding,
        deepstack features, cos, sin, its slot, and what is added to the scores of each slot."""
        self.sample()
        main, deepstack = self.embed()
        cos, sin = (table.index_select(0, self.cursor)[0][:, None] for table in (self.cos, self.sin))
        slot = self.cursor + self.prefix_width
        scores = self.scores.masked_fill(self.slots > slot, -torch.inf)
        # Under autocast an embedding comes in another precision, and the stream would stay in it.
        return main.to(self.hidden.dtype), deepstack, cos, sin, slot, scores[:, None, None]

    def step(
        self, filled: int | None = None, begin: Callable[..., Any] | None = None, one: Callable[..., Tensor] = run_layer
    ) -> None:
        """Samples the token under the cursor, feeds it to all branches, and moves the cursor to the next.

        Attention reads the first `filled` slots (None: all), which must be those in use at least. `begin` and `one`
        stand in for the methods of these names.
        """
        main, deepstack, cos, sin, slot, scores = (begin or type(self).begin)(self)
        if self._filled is None or self._filled[0] != filled:
            caches = zip(self.keys, self.values, strict=True)
            self._filled = filled, [(keys[:, :, :filled], values[:, :, :filled]) for keys, values in caches]
        rotary, scores = Rotary(cos, sin), scores[..., :filled]
        hidden = run_layers(self.layers, self.scales, main, rotary, deepstack, self._filled[1], slot, scores, one)
        self.hidden.copy_(hidden)
        self.cursor += 1
