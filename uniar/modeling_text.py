"""Qwen3-VL's text layers with the masks and kernels of uniar/attention.py; the visual decoder's layers are of the same
kind. Parameters have Qwen3-VL's names."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextAttention,
    Qwen3VLTextDecoderLayer,
    Qwen3VLTextMLP,
    Qwen3VLTextModel,
    Qwen3VLTextRMSNorm,
    Qwen3VLTextRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from uniar.attention import causal_mask, policy_kernels, without_autocast
from uniar.shared_prefix import SharedMask, attended


def residual_stream(embeds: Tensor, layers: Sequence[nn.Module]) -> Tensor:
    """(…, H) what drawing's layers add to: float32 where their weights are of half precision.

    Products are in half precision; it is their sum over 40 layers that rounding moves most, and in rollout and replay
    otherwise.
    """
    return embeds if layers[0].input_layernorm.weight.dtype == torch.float32 else embeds.float()


class RMSNorm(Qwen3VLTextRMSNorm):
    """Qwen3-VL's in one kernel instead of eight, in the precision of its weights whatever the stream's. In float32 both
    have the same bits on a CPU."""

    def forward(self, hidden: Tensor, scale: Tensor | None = None) -> Tensor:
        """`scale`: the weights in float32, from a caller that keeps them so."""
        return self.normed(hidden, scale).to(self.weight.dtype)

    def normed(self, hidden: Tensor, scale: Tensor | None = None) -> Tensor:
        """In the precision of `hidden`, if that is not less than the weights'."""
        weight = self.weight if hidden.dtype != torch.float32 else self.weight.float() if scale is None else scale
        if hidden.dtype != weight.dtype:  # half precision by autocast alone; there is no kernel for both
            return super().forward(hidden)
        # Autocast would have the kernel, which computes in float32 anyway, read and write float32.
        with without_autocast(hidden):
            return F.rms_norm(hidden, weight.shape, weight, self.variance_epsilon)


class UniARTextAttention(Qwen3VLTextAttention):
    """Qwen3-VL's attention, also of packed rows, whose tails share a prefix."""

    def __init__(self, config: Qwen3VLTextConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.q_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | SharedMask | None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """With a SharedMask, (R, P + G·T, H) packed rows → the same; else Qwen3-VL's."""
        if not isinstance(attention_mask, SharedMask):
            return super().forward(hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs)
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_norm(self.q_proj(hidden_states).view(heads)).transpose(1, 2)
        key = self.k_norm(self.k_proj(hidden_states).view(heads)).transpose(1, 2)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        attend = partial(attend, self, dropout=dropout, scaling=self.scaling, **kwargs)
        seen = attended(attend, query, key, value, attention_mask)
        return self.o_proj(seen.flatten(2)), None


class UniARTextLayer(Qwen3VLTextDecoderLayer):
    """A layer that chooses its kernels itself, so that it does so too where a checkpointed one is run again."""

    def __init__(self, config: Qwen3VLTextConfig, layer_idx: int) -> None:
        super(Qwen3VLTextDecoderLayer, self).__init__()
        self.hidden_size = config.hidden_size
        self.self_attn = UniARTextAttention(config, layer_idx)
        self.mlp = Qwen3VLTextMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        with policy_kernels():
            return super().forward(*args, **kwargs)


class UniARTextModel(Qwen3VLTextModel):
    """Qwen3-VL's text model, as its own constructor makes it but for the class of its layers."""

    _no_split_modules = ("UniARTextLayer",)

    def __init__(self, config: Qwen3VLTextConfig) -> None:
        super(Qwen3VLTextModel, self).__init__(config)
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(UniARTextLayer(config, number) for number in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = Qwen3VLTextRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Qwen3-VL's forward on a mask of ours, where it needs one."""
        if inputs_embeds is None:
            inputs_embeds, input_ids = self.embed_tokens(input_ids), None
        mask = causal_mask(self.config, inputs_embeds, attention_mask, past_key_values)
        return super().forward(
            attention_mask=attention_mask if mask is None else mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
