"""SD3's transformer block in fewer kernels, for GPUs: diffusers' sums with its names and weights.

A modulation is part of its norm, a gate of its sum, a bias and a GELU of their product. Latent and prompt tokens share
keys and values, but each kind has an attention call for its own queries, so these need not be copied into one tensor.

Shapes: B images · N latent tokens · M prompt tokens · D channels · h heads · R rows of conditioning, B or 1 for all.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import JointTransformerBlock
from diffusers.models.normalization import AdaLayerNormContinuous
from torch import Tensor, nn


class SD3Block(JointTransformerBlock):
    """On a CPU it runs as diffusers has it, unless it is compiled: in bfloat16 its bits would be others."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor | None, Tensor]:
        """(B, N, D), (B, M, D) and conditioning (R, D) → prompt tokens (None behind the last block), latent tokens."""
        on_cpu = hidden_states.device.type == "cpu" and not torch.compiler.is_compiling()
        if on_cpu or joint_attention_kwargs:
            return super().forward(hidden_states, encoder_hidden_states, temb, joint_attention_kwargs)
        return self.fused(hidden_states, encoder_hidden_states, temb)

    def fused(self, latent: Tensor, prompt: Tensor, temb: Tensor) -> tuple[Tensor | None, Tensor]:
        """`forward` in fewer kernels; it rounds less often."""
        given = F.silu(temb)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp, *second = self.norm1.linear(given).chunk(
            9 if self.use_dual_attention else 6, dim=1
        )
        last = isinstance(self.norm1_context, AdaLayerNormContinuous)
        of_prompt = self.norm1_context.linear(given).chunk(2 if last else 6, dim=1)
        prompt_scale, prompt_shift = of_prompt if last else (of_prompt[1], of_prompt[0])

        attended, prompt_attended = _joint_attention(
            self.attn,
            _modulated(latent, scale, shift),
            _modulated(prompt, prompt_scale, prompt_shift),
            asks=not last,
        )
        own = None
        if self.use_dual_attention:
            own = _own_attention(self.attn2, _modulated(latent, second[1], second[0]))
        latent = _gated(latent, gate, attended)
        if own is not None:
            latent = _gated(latent, second[2], own)
        latent = _gated(latent, gate_mlp, _feed_forward(self.ff, _modulated(latent, scale_mlp, shift_mlp)))
        if prompt_attended is None:
            return None, latent
        _, _, gate, shift_mlp, scale_mlp, gate_mlp = of_prompt
        prompt = _gated(prompt, gate, prompt_attended)
        prompt = _gated(prompt, gate_mlp, _feed_forward(self.ff_context, _modulated(prompt, scale_mlp, shift_mlp)))
        return prompt, latent


def _modulated(tokens: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """A layer norm without weights of its own, times 1 + scale, plus shift."""
    shape, eps = tokens.shape[-1:], 1e-6
    if len(scale) == 1:
        return F.layer_norm(tokens, shape, 1 + scale[0], shift[0], eps)
    return torch.addcmul(shift[:, None], F.layer_norm(tokens, shape, eps=eps), 1 + scale[:, None])


def _gated(tokens: Tensor, gate: Tensor, added: Tensor) -> Tensor:
    return torch.addcmul(tokens, gate[:, None], added)


def _feed_forward(layers: nn.Module, tokens: Tensor) -> Tensor:
    widen, _, narrow = layers.net
    return narrow(_with_gelu(widen.proj, tokens))


def _with_gelu(linear: nn.Linear, tokens: Tensor) -> Tensor:
    """The tanh form of GELU, which on CUDA a product computes before it writes its result. It has no derivative."""
    wants_gradient = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (tokens, linear.weight, linear.bias)
    )
    if wants_gradient or not tokens.is_cuda:
        return F.gelu(linear(tokens), approximate="tanh")
    flat = torch._addmm_activation(linear.bias, tokens.flatten(0, -2), linear.weight.t(), use_gelu=True)
    return flat.unflatten(0, tokens.shape[:-1])


def _heads(attn: nn.Module, linear: nn.Linear, norm: nn.Module | None, tokens: Tensor) -> Tensor:
    """(B, N, D) → (B, N, h, D/h)"""
    found = linear(tokens).unflatten(-1, (attn.heads, -1))
    return found if norm is None else norm(found)


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Of (B, N, h, D/h) each → (B, N, D), in the order in which it lies in memory."""
    found = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return found.transpose(1, 2).flatten(2)


def _own_attention(attn: nn.Module, latent: Tensor) -> Tensor:
    query, key = _heads(attn, attn.to_q, attn.norm_q, latent), _heads(attn, attn.to_k, attn.norm_k, latent)
    return attn.to_out[0](_attention(query, key, _heads(attn, attn.to_v, None, latent)))


def _joint_attention(attn: nn.Module, latent: Tensor, prompt: Tensor, *, asks: bool) -> tuple[Tensor, Tensor | None]:
    """Latent and prompt tokens attend to both; without `asks` the latter are only looked at."""
    key = torch.cat(
        [_heads(attn, attn.to_k, attn.norm_k, latent), _heads(attn, attn.add_k_proj, attn.norm_added_k, prompt)], 1
    )
    value = torch.cat([_heads(attn, attn.to_v, None, latent), _heads(attn, attn.add_v_proj, None, prompt)], 1)
    found = attn.to_out[0](_attention(_heads(attn, attn.to_q, attn.norm_q, latent), key, value))
    if not asks:
        return found, None
    query = _heads(attn, attn.add_q_proj, attn.norm_added_q, prompt)
    return found, attn.to_add_out(_attention(query, key, value))
