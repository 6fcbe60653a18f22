"""A prefix, prefilled: what the samples of its prompt begin with."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from uniar.attention import without_empty_rows
from uniar.drawing_model import DrawingModel
from uniar.engine.layers import Rotary, empty_cache, layers_of, run_layers, stream_scales
from uniar.turn_prompt import TurnPrompt


@dataclass
class Prefix:
    """One branch's prefilled prefixes: keys and values of each layer (U, heads, P, head), last hidden state (U, H)."""

    keys: list[Tensor]
    values: list[Tensor]
    last_hidden: Tensor
    valid: Tensor
    """(U, P) bool, false on the padding"""
    new_positions: Tensor
    """(3, U, T)"""

    @property
    def width(self) -> int:
        return self.valid.shape[1]


def prefill(model: DrawingModel, prompt: TurnPrompt, layers: Sequence[nn.Module] | None = None) -> Prefix:
    """layers: those that are run; None: all, as drawing needs them."""
    layers = layers_of(model) if layers is None else layers
    rows, width = prompt.input_ids.shape
    backbone = model.model
    added: list[Tensor] = []
    if prompt.visual_bits is None:
        if bool((prompt.input_ids == model.config.image_token_id).any()):
            raise ValueError("the prefix holds image tokens and came without visual bits.")
        embeds = backbone.get_input_embeddings()(prompt.input_ids)
    else:
        main, *deepstack = backbone.visual.language_features(prompt.visual_bits)
        embeds, image_mask = backbone.embed_images(prompt.input_ids, [main])
        added = [
            torch.zeros_like(embeds).masked_scatter(image_mask[..., None], features.to(embeds.dtype))
            for features in deepstack[: len(backbone.language_model.layers)]
        ]
    valid = prompt.attention_mask.bool()
    slots = torch.arange(width, device=embeds.device)
    visible = without_empty_rows((slots[:, None] >= slots) & valid[:, None, :])
    rotary = Rotary.of(model, prompt.position_ids[:, :, :width])
    keys, values = (empty_cache(model, layers, rows, width) for _ in range(2))
    caches = list(zip(keys, values, strict=True))
    visible = visible[:, None].repeat(1, 1, layers[0].self_attn.num_key_value_groups, 1)
    hidden = run_layers(layers, stream_scales(layers), embeds, rotary, added, caches, slots, visible)
    return Prefix(keys, values, hidden[:, -1], valid, prompt.position_ids[:, :, width:])
