"""The layers of the AR model on caches of their keys and values: backbone and visual decoder, one behind the other."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb

from uniar.attention import policy_kernels
from uniar.drawing_model import DrawingModel
from uniar.modeling_text import residual_stream


def layers_of(model: DrawingModel) -> list[nn.Module]:
    return [*model.model.language_model.layers, *model.visual_decoder_layers]


def empty_cache(model: DrawingModel, rows: int, slots: int) -> list[Tensor]:
    attention = model.config.text_config
    shape = (rows, attention.num_key_value_heads, slots, attention.head_dim)
    return [torch.zeros(shape, dtype=model.dtype, device=model.device) for _ in layers_of(model)]


@policy_kernels()
def run_layers(
    layers: Sequence[nn.Module],
    hidden: Tensor,
    rotary: tuple[Tensor, Tensor],
    deepstack: Sequence[Tensor],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    slots: Tensor,
    visible: Tensor,
) -> Tensor:
    """Runs Q new positions (rows, Q, H) through all layers; their keys and values go to `slots` (Q,) of the caches.

    `visible` (rows, 1, Q, slots) says which cache slots each new position attends to. Attention is torch's own fused
    one whichever implementation the model replays with: flash-attention has nothing to gain at one query per row.
    """
    rows, queries, _ = hidden.shape
    hidden = residual_stream(hidden, layers)
    for number, layer in enumerate(layers):
        attention, x = layer.self_attn, layer.input_layernorm(hidden)
        heads = (rows, queries, -1, attention.head_dim)
        query = attention.q_norm(attention.q_proj(x).view(heads)).transpose(1, 2)
        key = attention.k_norm(attention.k_proj(x).view(heads)).transpose(1, 2)
        value = attention.v_proj(x).view(heads).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *rotary)
        keys[number].index_copy_(2, slots, key.to(keys[number].dtype))
        values[number].index_copy_(2, slots, value.to(values[number].dtype))
        # Query heads that share a key head become further queries of it: nothing is repeated in memory.
        shared = attention.num_key_value_groups
        attended = F.scaled_dot_product_attention(
            query.reshape(rows, -1, shared * queries, attention.head_dim),
            keys[number],
            values[number],
            attn_mask=visible if queries == 1 else visible.repeat(1, 1, shared, 1),
            scale=attention.scaling,
        )
        attended = attended.reshape(rows, -1, queries, attention.head_dim).transpose(1, 2)
        hidden = hidden + attention.o_proj(attended.reshape(rows, queries, -1))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        if number < len(deepstack):
            hidden = hidden + deepstack[number]
    return hidden
