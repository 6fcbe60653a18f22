"""UniAR-Tiny's sizes, and the untrained parts that its training starts from (docs/checkpoint-format.md, 1 and 2).

64×64 pixels are 4×4 visual tokens of 2 levels × 4 patches × 32 bits; a patch of the tokenizer (8 pixels) is a patch of
the SD3 transformer (2 latents of 4 pixels), so nothing is resized between them.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from transformers import AutoTokenizer, GenerationConfig

from uniar.configuration_uniar import UniARConfig, UniARVisionConfig
from uniar.modeling_sd3 import SD3Transformer2DModelWithSigLIP
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.modeling_vision import UniARVisionModel
from uniar.presets.decoder import write_pipeline
from uniar.presets.processor import MODEL_MAX_LENGTH, write_processor
from uniar.presets.weights import randomize

SIDE = 64
PATCH = 8
MERGE = 2
GRID = SIDE // (PATCH * MERGE)
"""visual tokens per side"""
VOCABULARY = 512
TEXT_HIDDEN = 192
HEAD_DIM = 32
VISION_HIDDEN = 64
BITS = 32
"""of a patch and level"""
LATENT_CHANNELS = 4
VAE_FACTOR = 4
JOINT_DIM = 32


def write_untrained(folder: Path, sentences: list[str], seed: int) -> None:
    """Writes what no stage trains: tokenizer and processor (from `sentences`), scheduler and text encoders."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = SIDE * SIDE
    write_processor(
        folder,
        vocabulary=VOCABULARY,
        sentences=sentences,
        patch_size=PATCH,
        merge_size=MERGE,
        max_pixels=pixels,
        min_pixels=pixels,  # the model knows images of 16 visual tokens only
    )
    write_pipeline(folder / "sd3_pipeline", JOINT_DIM, seed, whole_prompt=True)


def new_vae() -> AutoencoderKL:
    """KL-VAE: 64×64×3 pixels ↔ 16×16×4 latents, 0.43M parameters."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 48),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=LATENT_CHANNELS,
        sample_size=SIDE,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def vision_config() -> UniARVisionConfig:
    return UniARVisionConfig(
        depth=4,
        hidden_size=VISION_HIDDEN,
        num_heads=4,
        intermediate_size=3 * VISION_HIDDEN,
        patch_size=PATCH,
        spatial_merge_size=MERGE,
        temporal_patch_size=2,
        out_hidden_size=TEXT_HIDDEN,
        num_position_embeddings=(SIDE // PATCH) ** 2,
        deepstack_visual_indexes=[1],
        bsq_dim=BITS,
        bsq_hidden_dim=3 * VISION_HIDDEN,
        vistok_pred=True,
        vistok_pred_layernorm=True,
    )


def new_vision(seed: int) -> UniARVisionModel:
    """The tokenizer: 4 ViT layers, 2 levels of 32 bits per patch, 0.5M parameters."""
    vision = UniARVisionModel(vision_config())
    # transformers' own standard deviation of 0.02 is meant for widths of thousands.
    randomize(vision, seed, "vision", {"pos_embed": 0.5, "attn.proj": 0.5, "mlp.linear_fc2": 0.5})
    return vision


def new_sd3() -> SD3Transformer2DModelWithSigLIP:
    """SD3 transformer of 4 layers, width 128: 2.4M parameters."""
    return SD3Transformer2DModelWithSigLIP(
        sample_size=SIDE // VAE_FACTOR,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=JOINT_DIM,
        caption_projection_dim=128,
        pooled_projection_dim=JOINT_DIM,
        pos_embed_max_size=SIDE // PATCH,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
        siglip_channels=vision_config().levels * VISION_HIDDEN,
        drop_image_token_prob_for_cfg=0.1,
    )


def new_policy(folder: Path, seed: int) -> UniARForConditionalGeneration:
    """The AR model for the tokenizer in `folder`: 6 text layers and 2 of the visual decoder, width 192."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.convert_tokens_to_ids
    quarter = HEAD_DIM // 8
    text: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": TEXT_HIDDEN,
        "intermediate_size": 416,
        "num_hidden_layers": 6,
        "num_attention_heads": TEXT_HIDDEN // HEAD_DIM,
        "num_key_value_heads": 2,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": MODEL_MAX_LENGTH,
        "bos_token_id": ids("<|endoftext|>"),
        "eos_token_id": ids("<|im_end|>"),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5000000.0,
            "mrope_section": [HEAD_DIM // 2 - 2 * quarter, quarter, quarter],
            "mrope_interleaved": True,
        },
    }
    config = UniARConfig(
        text_config=text,
        vision_config=vision_config().to_dict(),
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=False,
        vistok_pred=True,
        vistok_pred_layernorm=True,
        visual_transformer_decoder=True,
        visual_transformer_decoder_depth=2,
    )
    model = UniARForConditionalGeneration(config)
    randomize(
        model, seed, "policy", {"embed_tokens": 0.5, "o_proj": 0.3, "down_proj": 0.3, "lm_head": 0.3, "vistok": 0.3}
    )
    model.generation_config = GenerationConfig(
        bos_token_id=text["bos_token_id"],
        eos_token_id=[text["eos_token_id"], text["bos_token_id"]],
        pad_token_id=text["bos_token_id"],
    )
    return model


def patches(pixels: torch.Tensor) -> torch.Tensor:
    """(B, 3, 64, 64) in -1 to 1 → (B·64, 3·2·8·8), as the checkpoint's image processor lays images out."""
    batch, channels = pixels.shape[:2]
    blocks = pixels.view(batch, channels, GRID, MERGE, PATCH, GRID, MERGE, PATCH)
    blocks = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7)[..., None, :, :].expand(*([-1] * 6), 2, -1, -1)
    return blocks.reshape(batch * (SIDE // PATCH) ** 2, -1)


def grids(batch: int) -> torch.Tensor:
    """(B, 3) image_grid_thw of B images."""
    return torch.tensor([[1, SIDE // PATCH, SIDE // PATCH]]).expand(batch, 3)
