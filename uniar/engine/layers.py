"""The layers of the AR model on caches of their keys and values: backbone and visual decoder, one behind the other.

Shapes: R rows · Q new positions · S cache slots that they may see · H hidden · D head.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniar.attention import policy_kernels
from uniar.drawing_model import DrawingModel
from uniar.modeling_text import residual_stream


def layers_of(model: DrawingModel) -> list[nn.Module]:
    return [*model.model.language_model.layers, *model.visual_decoder_layers]


def empty_cache(model: DrawingModel, layers: Sequence[nn.Module], rows: int, slots: int) -> list[Tensor]:
    attention = model.config.text_config
    shape = (rows, attention.num_key_value_heads, slots, attention.head_dim)
    return [torch.zeros(shape, dtype=model.dtype, device=model.device) for _ in layers]


@dataclass
class Rotary:
    """What queries and keys of Q positions are turned by: cos and sin (R, Q, 1, D), sin negative in its first half."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, model: DrawingModel, positions: Tensor) -> "Rotary":
        """Of (3, R, Q) positions, in the model's precision."""
        like = torch.empty(0, dtype=model.dtype, device=model.device)
        cos, sin = model.model.language_model.rotary_emb(like, positions)
        half = sin.shape[-1] // 2
        return cls(cos[:, :, None], torch.cat([-sin[..., :half], sin[..., half:]], -1)[:, :, None])


def stream_scales(layers: Sequence[nn.Module]) -> list[tuple[Tensor, Tensor]]:
    """The weights of each layer's two norms in the precision of the residual stream, which is float32."""
    return [(layer.input_layernorm.weight.float(), layer.post_attention_layernorm.weight.float()) for layer in layers]


def run_layer(
    layer: nn.Module,
    scales: tuple[Tensor, Tensor],
    hidden: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    visible: Tensor,
) -> Tensor:
    """Runs new positions (R, Q, H) through a layer; their keys and values go to `slots` (Q,) of the caches.

    `visible` (R, 1, Q', S) says which cache slots each query of a key head sees, bool or what is added to its scores:
    the query heads that share a key head are further queries of it, so that nothing is repeated in memory. Attention is
    torch's own fused one whichever implementation the model replays with: flash-attention has nothing to gain at one
    query per row.
    """
    rows, queries, _ = hidden.shape
    attention, x = layer.self_attn, layer.input_layernorm(hidden, scales[0])
    heads = (rows, queries, -1, attention.head_dim)
    query = attention.q_norm(attention.q_proj(x).view(heads))
    key = attention.k_norm(attention.k_proj(x).view(heads))
    value = attention.v_proj(x).view(heads)
    both = torch.cat([query, key], 2)
    turned = both * cos + both.roll(attention.head_dim // 2, -1) * sin  # rounded where the replay rounds
    query, key = turned.transpose(1, 2).split([query.shape[2], key.shape[2]], 1)
    keys.index_copy_(2, slots, key.to(keys.dtype))
    values.index_copy_(2, slots, value.transpose(1, 2).to(values.dtype))
    shared = attention.num_key_value_groups
    attended = F.scaled_dot_product_attention(
        query.reshape(rows, -1, shared * queries, attention.head_dim),
        keys,
        values,
        attn_mask=visible,
        scale=attention.scaling,
    )
    attended = attended.reshape(rows, -1, queries, attention.head_dim).transpose(1, 2)
    # Two dimensions: with three of these strides torch would multiply row by row, and read all weights for each.
    hidden = hidden + attention.o_proj(attended.reshape(rows * queries, -1)).view_as(hidden)
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden, scales[1]))


@policy_kernels()
def run_layers(
    layers: Sequence[nn.Module],
    scales: Sequence[tuple[Tensor, Tensor]],
    hidden: Tensor,
    rotary: Rotary,
    deepstack: Sequence[Tensor],
    caches: Sequence[tuple[Tensor, Tensor]],
    slots: Tensor,
    visible: Tensor,
    one: Callable[..., Tensor] = run_layer,
) -> Tensor:
    """All layers, each on its (keys, values); `deepstack` features are added behind the first. `one` runs a layer."""
    hidden = residual_stream(hidden, layers)
    for number, (layer, own, cache) in enumerate(zip(layers, scales, caches, strict=True)):
        hidden = one(layer, own, hidden, rotary.cos, rotary.sin, *cache, slots, visible)
        if number < len(deepstack):
            hidden = hidden + deepstack[number]
    return hidden
