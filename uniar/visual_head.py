"""The head that predicts visual bits (docs/checkpoint-format.md, 2 and 3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniar.attention import without_autocast
from uniar.configuration_uniar import UniARConfig
from uniar.modeling_text import RMSNorm

MLP_HEAD_WIDTH = 16384


class HeadProduct(nn.Linear):
    """The last product, (…, H) → (…, 2 outputs a bit), in float32 where its weights are of half precision.

    What is drawn, replayed and trained is the difference of two logits, which rounding both to bfloat16 would move by
    hundredths. Float32 weights go as autocast has it.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        if self.weight.dtype == torch.float32:
            return super().forward(hidden)
        with without_autocast(hidden):
            return F.linear(hidden.float(), self.weight.float())


class HeadNorm(RMSNorm):
    """Directly before the last product, and rounded no earlier."""

    def forward(self, hidden: Tensor, scale: Tensor | None = None) -> Tensor:
        return self.normed(hidden if self.weight.dtype == torch.float32 else hidden.float(), scale)


def visual_head(config: UniARConfig) -> nn.Module:
    """Parameter names follow the reference's Sequential: `.weight`, `.0`/`.1`, or `.0`/`.1`/`.3`."""
    text, vision = config.text_config, config.vision_config
    levels, spatial, bsq_dim = vision.code_shape
    outputs = levels * spatial * bsq_dim * 2
    if config.vistok_pred_use_mlp:
        return nn.Sequential(
            RMSNorm(text.hidden_size, eps=text.rms_norm_eps),
            nn.Linear(text.hidden_size, MLP_HEAD_WIDTH, bias=False),
            nn.GELU(approximate="tanh"),
            HeadProduct(MLP_HEAD_WIDTH, outputs, bias=False),
        )
    product = HeadProduct(text.hidden_size, outputs, bias=False)
    if config.vistok_pred_layernorm:
        return nn.Sequential(HeadNorm(text.hidden_size, eps=text.rms_norm_eps), product)
    return product
