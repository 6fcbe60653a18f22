"""BLIP as ImageReward uses it (Li et al. 2022, arXiv:2201.12086): the text reads the image by cross-attention.

transformers' modules under the names of BLIP's own files.
"""

import re
from typing import Any

import torch
from torch import nn

from rewards.models.linear_head import LinearHead

LARGE = {
    "image_size": 224,
    "patch_size": 16,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "layer_norm_eps": 1e-6,  # as in timm's ViT; transformers' default for BLIP is another
}
"""The vision tower of BLIP-large."""

MED = {
    "vocab_size": 30524,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
}
"""The text tower: BERT-base with cross-attention, what ImageReward's med_config.json says."""

_VISION_NAMES = (
    (r"^vision\.embeddings\.class_embedding", "blip.visual_encoder.cls_token"),
    (r"^vision\.embeddings\.position_embedding", "blip.visual_encoder.pos_embed"),
    (r"^vision\.embeddings\.patch_embedding", "blip.visual_encoder.patch_embed.proj"),
    (r"^vision\.post_layernorm", "blip.visual_encoder.norm"),
    (r"^vision\.encoder\.layers\.", "blip.visual_encoder.blocks."),
    (r"\.self_attn\.qkv", ".attn.qkv"),
    (r"\.self_attn\.projection", ".attn.proj"),
    (r"\.layer_norm(\d)", r".norm\1"),
)


class BlipReward(nn.Module):
    """Images and texts → one number each: the head on the text's [CLS] state."""

    def __init__(self, vision: dict[str, Any], text: dict[str, Any]):
        super().__init__()
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        self.vision = BlipVisionModel(BlipVisionConfig(**vision))
        # is_decoder gives it cross-attention layers; it still reads in both directions, as `forward` asks it to.
        self.text = BlipTextModel(
            BlipTextConfig(**text, encoder_hidden_size=vision["hidden_size"], is_decoder=True), add_pooling_layer=False
        )
        self.mlp = LinearHead(text["hidden_size"])

    def forward(self, pixels_BCHW: torch.Tensor, ids_BP: torch.Tensor, mask_BP: torch.Tensor) -> torch.Tensor:
        """(B,) float32."""
        patches = self.vision(pixel_values=pixels_BCHW).last_hidden_state
        text = self.text(
            input_ids=ids_BP, attention_mask=mask_BP, encoder_hidden_states=patches, is_decoder=False
        ).last_hidden_state
        return self.mlp(text[:, 0].float())


def published_name(name: str) -> str:
    """A weight of BlipReward, as ImageReward.pt calls it."""
    if name.startswith("text."):
        return f"blip.text_encoder.{name.removeprefix('text.')}"
    if name.startswith("vision."):
        for pattern, replacement in _VISION_NAMES:
            name = re.sub(pattern, replacement, name)
    return name
