"""Qwen3-VL's text layers with the masks and kernels of uniar/attention.py; the visual decoder's layers are of the same
kind. Parameters have Qwen3-VL's names."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextDecoderLayer,
    Qwen3VLTextModel,
    Qwen3VLTextRMSNorm,
    Qwen3VLTextRotaryEmbedding,
)

from uniar.attention import causal_mask, policy_kernels, without_autocast


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


class UniARTextLayer(Qwen3VLTextDecoderLayer):
    """A layer that chooses its kernels itself, so that it does so too where a checkpointed one is run again."""

    def __init__(self, config: Qwen3VLTextConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        attention = self.self_attn
        attention.q_norm = RMSNorm(attention.head_dim, eps=config.rms_norm_eps)
        attention.k_norm = RMSNorm(attention.head_dim, eps=config.rms_norm_eps)

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
