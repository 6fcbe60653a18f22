"""`sd3_transformer/` and `sd3_pipeline/` of a preset: a Stable Diffusion 3 of a few thousand parameters.

Untrained, it can draw no objects. But its weights are scaled so that what it draws depends on the visual bits: soft
fields of saturated colour, other bits giving other colours. That is enough for a reward to tell rollouts apart.
"""

from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from torch import nn

from uniar.modeling_sd3 import SD3Transformer2DModelWithSigLIP
from uniar.presets.processor import write_json
from uniar.presets.text_encoders import write_text_encoders
from uniar.presets.weights import randomize


@dataclass(frozen=True)
class DecoderSize:
    """Sizes of the SD3 part of a preset. The VAE shrinks by 2 per channel entry after the first."""

    layers: int
    heads: int
    head_dim: int
    latent_channels: int
    vae_channels: tuple[int, ...]
    joint_dim: int
    max_side: int
    """largest latent side in patches that has position embeddings"""


def write_decoder(folder: Path, size: DecoderSize, siglip_channels: int, seed: int) -> None:
    """Writes both SD3 folders into `folder`. `siglip_channels` is levels·hidden of the vision encoder."""
    transformer = SD3Transformer2DModelWithSigLIP(
        sample_size=size.max_side,
        patch_size=2,
        in_channels=size.latent_channels,
        out_channels=size.latent_channels,
        num_layers=size.layers,
        attention_head_dim=size.head_dim,
        num_attention_heads=size.heads,
        joint_attention_dim=size.joint_dim,
        caption_projection_dim=size.heads * size.head_dim,
        pooled_projection_dim=size.joint_dim,
        pos_embed_max_size=size.max_side,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
        siglip_channels=siglip_channels,
        drop_image_token_prob_for_cfg=0.1,
        image_token_scale_factor=1.0,
        add_siglip_tensor_to_latent=True,
        super_resolution=True,
        upscale_factor=2,
        train_use_random_crop_pos_embed=False,
        random_crop_pos_embed_max_resolution=None,
    )
    # The bits' features outweigh noise and position in the tokens, the blocks add to them rather than replace them,
    # and the velocity is large enough to leave little of the noise in the latents.
    gains = {"pos_embed": 0.5, "siglip_embed_add_latent": 4.0, "norm1": 0.3, "norm_out": 0.1, "proj_out": 5.0}
    randomize(transformer, seed, "sd3_transformer", gains)
    transformer.save_pretrained(folder / "sd3_transformer")
    _vae(size, seed).save_pretrained(folder / "sd3_pipeline" / "vae")
    write_pipeline(folder / "sd3_pipeline", size.joint_dim, seed)


def write_pipeline(folder: Path, joint_dim: int, seed: int, *, whole_prompt: bool = False) -> None:
    """Writes the pipeline `folder` but for its VAE: scheduler, text encoders, tokenizers and the index."""
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    write_text_encoders(folder, joint_dim, seed, whole_prompt=whole_prompt)
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "StableDiffusion3Pipeline",
            "_diffusers_version": diffusers.__version__,
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "text_encoder_3": ["transformers", "T5EncoderModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "tokenizer_3": ["transformers", "T5TokenizerFast"],
            "transformer": ["diffusers", "SD3Transformer2DModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )


def _vae(size: DecoderSize, seed: int) -> AutoencoderKL:
    blocks = len(size.vae_channels)
    vae = AutoencoderKL(
        block_out_channels=size.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        layers_per_block=1,
        # Few groups: normalising each channel by itself would take the mean colour out of every image.
        norm_num_groups=2,
        latent_channels=size.latent_channels,
        sample_size=2 ** (blocks - 1) * 2 * size.max_side,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    randomize(vae, seed, "vae", {"decoder": 1.0, "resnets.0.conv2": 0.5, "resnets.1.conv2": 0.5})
    _soften(vae.decoder)
    return vae


def _soften(decoder: nn.Module) -> None:
    """Makes the 3×3 convolutions blur in space and mix at random across channels: colour fields instead of noise.

    Red, green and blue are read off orthogonal directions, or random ones would give shades of two colours only.
    """
    line = torch.tensor([1.0, 2.0, 1.0])
    blur = torch.outer(line, line)
    with torch.no_grad():
        for module in decoder.modules():
            if not isinstance(module, nn.Conv2d) or module.kernel_size != (3, 3):
                continue
            mix = module.weight.sum((2, 3), keepdim=True) / 3
            if module is decoder.conv_out:
                mix = _orthogonal_rows(mix.flatten(1))[:, :, None, None] * 1.3
                module.weight.copy_(mix * blur / blur.sum())
            else:
                module.weight.mul_(0.15).add_(mix * blur / blur.norm())


def _orthogonal_rows(matrix: torch.Tensor) -> torch.Tensor:
    """(rows, columns) → orthonormal rows, each summing to 0; Gram-Schmidt in float64."""
    rows: list[torch.Tensor] = []
    for row in (matrix - matrix.mean(1, keepdim=True)).double():
        for earlier in rows:
            row = row - (row @ earlier) * earlier
        rows.append(row / row.norm())
    return torch.stack(rows).to(matrix.dtype)
