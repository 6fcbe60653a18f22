"""The head that predicts visual bits (docs/checkpoint-format.md, 2 and 3)."""

from torch import nn
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm

from uniar.configuration_uniar import UniARConfig

MLP_HEAD_WIDTH = 16384


def visual_head(config: UniARConfig) -> nn.Module:
    """Parameter names follow the reference's Sequential: `.weight`, `.0`/`.1`, or `.0`/`.1`/`.3`."""
    text, vision = config.text_config, config.vision_config
    levels, spatial, bsq_dim = vision.code_shape
    outputs = levels * spatial * bsq_dim * 2
    if config.vistok_pred_use_mlp:
        return nn.Sequential(
            Qwen3VLTextRMSNorm(text.hidden_size, eps=text.rms_norm_eps),
            nn.Linear(text.hidden_size, MLP_HEAD_WIDTH, bias=False),
            nn.GELU(approximate="tanh"),
            nn.Linear(MLP_HEAD_WIDTH, outputs, bias=False),
        )
    linear = nn.Linear(text.hidden_size, outputs, bias=False)
    if config.vistok_pred_layernorm:
        return nn.Sequential(Qwen3VLTextRMSNorm(text.hidden_size, eps=text.rms_norm_eps), linear)
    return linear
