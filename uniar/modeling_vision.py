"""The image tokenizer: pixels ↔ bits ↔ features (docs/checkpoint-format.md, 3 and 4).

Shapes: N visual tokens of all images laid end to end · B images of T tokens · L levels · S = merge² patches of a
token, row-major · K bits per code. Level 0 is the last layer, levels 1… are the deepstack layers in order.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    BaseModelOutputWithDeepstackFeatures,
    Qwen3VLVisionModel,
    Qwen3VLVisionPatchMerger,
)
from transformers.vision_utils import (
    get_vision_attention_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from uniar.checkpoint import StrictLoading
from uniar.configuration_uniar import UniARVisionConfig
from uniar.quantizer import BinarySphericalQuantizer, bits_to_codes


class BSQProjection(nn.Module):
    """LayerNorm → Linear → GELU (erf) → Linear, on either side of the quantizer."""

    def __init__(self, in_features: int, hidden_features: int, out_features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_features, eps=1e-6)
        self.linear_fc1 = nn.Linear(in_features, hidden_features)
        self.act_fn = nn.GELU()
        self.linear_fc2 = nn.Linear(hidden_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_fc2(self.act_fn(self.linear_fc1(self.norm(x))))


class UniARVisionModel(StrictLoading, Qwen3VLVisionModel):
    """Qwen3-VL's vision tower whose features pass through K bits per patch and level."""

    config: UniARVisionConfig

    def __init__(self, config: UniARVisionConfig) -> None:
        super().__init__(config)
        if not config.bsq_skip_final_layernorm:
            self.merger = Qwen3VLVisionPatchMerger(config, use_postshuffle_norm=True)
        self.bsq = BinarySphericalQuantizer(config.bsq_dim)
        for suffix in self._level_suffixes():
            into = BSQProjection(config.hidden_size, config.bsq_hidden_dim, config.bsq_dim)
            out_of = BSQProjection(config.bsq_dim, config.bsq_hidden_dim, config.hidden_size)
            self.add_module(f"bsq_input_proj{suffix}", into)
            self.add_module(f"bsq_output_proj{suffix}", out_of)
        self.post_init()

    def _level_suffixes(self) -> list[str]:
        """Module-name suffix of each level, in level order."""
        return ["", *(f"_list_{k}" for k in range(self.config.levels - 1))]

    def _tower(self, pixel_values: Tensor, grid_thw: Tensor) -> list[Tensor]:
        """Hidden states of the quantized layers in level order, each (patches, hidden), merge blocks contiguous."""
        indices, weights = get_vision_interpolation_indices_and_weights(
            grid_thw,
            num_grid_per_side=self.num_grid_per_side,
            mode=self.interpolation_mode,
            align_corners=self.interpolation_align_corners,
            spatial_merge_size=self.config.spatial_merge_size,
        )
        position_ids = get_vision_position_ids(grid_thw, self.config.spatial_merge_size)
        cu_seqlens, max_seqlen = get_vision_attention_seqlens(grid_thw, self.config)

        hidden = self.patch_embed(pixel_values)
        hidden = hidden + (self.pos_embed(indices) * weights[:, :, None]).sum(1).to(hidden.dtype)
        rotary = self.rotary_pos_emb(hidden, position_ids)
        deepstack = {}
        for number, block in enumerate(self.blocks):
            hidden = block(hidden, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen, position_embeddings=rotary)
            if number in self.deepstack_visual_indexes:
                deepstack[number] = hidden
        return [hidden, *(deepstack[number] for number in self.deepstack_visual_indexes)]

    def encode_projections(self, pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
        """Pixels → (N, L, S, K), what the quantizer takes the sign of (unnormalised).

        `pixel_values` is the processor's (patches, channels·temporal·patch²), `grid_thw` (images, 3) in patches.
        """
        projected = [
            getattr(self, f"bsq_input_proj{suffix}")(hidden)
            for suffix, hidden in zip(self._level_suffixes(), self._tower(pixel_values, grid_thw), strict=True)
        ]
        _, spatial, bsq_dim = self.config.code_shape
        return torch.stack([p.view(-1, spatial, bsq_dim) for p in projected], dim=1)

    def encode(self, pixel_values: Tensor, grid_thw: Tensor) -> Tensor:
        """Pixels → bits (N, L, S, K) uint8."""
        return self.bsq(self.encode_projections(pixel_values, grid_thw))

    def dequantize(self, bits: Tensor) -> list[Tensor]:
        """Bits (..., L, S, K) → per level (tokens·S, hidden), before any merger, in the model's dtype."""
        levels, _, bsq_dim = self.config.code_shape
        if bits.shape[-3:] != self.config.code_shape:
            raise ValueError(f"bits end in {tuple(bits.shape[-3:])}; this model's tokens are {self.config.code_shape}.")
        codes = bits_to_codes(bits.reshape(-1, *self.config.code_shape), self.dtype) / bsq_dim**0.5
        return [
            getattr(self, f"bsq_output_proj{suffix}")(codes[:, level].reshape(-1, bsq_dim))
            for level, suffix in zip(range(levels), self._level_suffixes(), strict=True)
        ]

    def language_features(self, bits: Tensor) -> list[Tensor]:
        """Bits (..., L, S, K) → L tensors (tokens, out_hidden): the input embedding, then the deepstack features."""
        main, *deepstack = self.dequantize(bits)
        if self.config.bsq_skip_final_layernorm:
            deepstack = [self.merger.norm(features) for features in deepstack]
        merged = [merge(features) for merge, features in zip(self.deepstack_merger_list, deepstack, strict=True)]
        return [self.merger(main), *merged]

    def decoder_features(self, bits: Tensor, grid: tuple[int, int]) -> Tensor:
        """Bits (B, T, L, S, K) → (B, patches, hidden·L) for the SD3 decoder (docs/checkpoint-format.md, 4).

        `grid` is (rows, columns) in visual tokens. Patches come in plain raster order; level is the fastest channel.
        """
        rows, columns = grid
        batch, tokens = bits.shape[:2]
        if tokens != rows * columns:
            raise ValueError(f"{tokens} visual tokens do not fill a grid of {rows}×{columns} = {rows * columns}.")
        merge = self.config.spatial_merge_size
        features = torch.stack(self.dequantize(bits), dim=-1).flatten(-2)
        features = features.view(batch, rows, columns, merge, merge, -1).transpose(2, 3)
        return features.reshape(batch, tokens * merge**2, -1)

    def forward(self, hidden_states: Tensor, grid_thw: Tensor, **kwargs: Any) -> BaseModelOutputWithDeepstackFeatures:
        """Pixels (patches, …) → what Qwen3-VL expects of its tower, having gone through the bits."""
        main, *deepstack = self.language_features(self.encode(hidden_states, grid_thw))
        return BaseModelOutputWithDeepstackFeatures(
            last_hidden_state=None, pooler_output=main, deepstack_features=deepstack
        )


AutoModel.register(UniARVisionConfig, UniARVisionModel)
