"""A checkpoint as wide as the released one and a few layers deep: 2.3 billion random weights, bfloat16, five shards."""

import math
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn

from rl.plan.planned_model import SIZES
from uniar.configuration_uniar import UniARConfig
from uniar.modeling_sd3 import SD3Transformer2DModelWithSigLIP
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.modeling_vision import UniARVisionModel
from uniar.presets.decoder import write_pipeline
from uniar.presets.processor import corpus, write_processor
from uniar.reading.files import read_object

TEXT_LAYERS, DECODER_LAYERS, SD3_LAYERS = 2, 1, 4
VISION = {"depth": 8, "deepstack_visual_indexes": [2, 4, 6]}
PROMPT_WIDTH = 64
"""of the decoder's constant prompt alone, whose encoders are small: T5-XXL is loaded for it and gone"""


def build(folder: Path) -> Path:
    sizes = read_object(SIZES)
    sizes["config"]["text_config"]["num_hidden_layers"] = TEXT_LAYERS
    sizes["config"]["vision_config"] |= VISION
    sizes["config"]["visual_transformer_decoder_depth"] = DECODER_LAYERS
    tokenizer = write_processor(
        folder, vocabulary=512, sentences=corpus(), patch_size=16, merge_size=2, max_pixels=512**2
    )
    ids = {
        f"{name}_token_id": tokenizer.token_to_id(f"<|{token}|>")
        for name, token in (
            *(("image", "image_pad"), ("video", "video_pad")),
            *(("vision_start", "vision_start"), ("vision_end", "vision_end")),
        )
    }
    sizes["config"]["text_config"] |= {"eos_token_id": tokenizer.token_to_id("<|im_end|>")}
    config = UniARConfig(**sizes["config"], **ids)
    with torch.device("meta"):
        model = UniARForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
        tower = UniARVisionModel._from_config(config.vision_config, dtype=torch.bfloat16)
    filled(model).save_pretrained(folder, max_shard_size="1GB")
    tower.to_empty(device="cpu")
    tower.load_state_dict(model.model.visual.state_dict())
    del model
    tower.save_pretrained(folder / "bsq_encoder")
    transformer = sizes["transformer"] | {
        "num_layers": SD3_LAYERS,
        "dual_attention_layers": [0, 1],
        "joint_attention_dim": PROMPT_WIDTH,
        "pooled_projection_dim": PROMPT_WIDTH,
        "pos_embed_max_size": 64,
    }
    filled(SD3Transformer2DModelWithSigLIP.from_config(transformer).to(torch.bfloat16)).save_pretrained(
        folder / "sd3_transformer"
    )
    filled(AutoencoderKL.from_config(sizes["vae"]).to(torch.bfloat16)).save_pretrained(folder / "sd3_pipeline" / "vae")
    write_pipeline(folder / "sd3_pipeline", PROMPT_WIDTH, 0)
    return folder


@torch.no_grad()
def filled(module: nn.Module) -> nn.Module:
    """Random weights that keep numbers finite; what is on the meta device gets memory. Buffers that a model computes
    for itself are not saved, and are left as they come."""
    torch.manual_seed(0)
    if any(parameter.is_meta for parameter in module.parameters()):
        module.to_empty(device="cpu")
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            parameter.normal_(std=0.3 if "embed_tokens" in name else 1 / math.sqrt(parameter[0].numel()))
    return module
