"""The trained parts → a checkpoint as it is released: every weight in bfloat16, one vision encoder in both places."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from rl.tiny.stages.tokenizer import load_tokenizer
from uniar.decoder_parts import load_exactly
from uniar.modeling_sd3 import SD3Transformer2DModelWithSigLIP
from uniar.modeling_uniar import UniARForConditionalGeneration


def finish(folder: Path) -> None:
    """Rewrites the weights in `folder` in bfloat16. The tokenizer's mergers, which the AR model's stages trained, are
    copied into `bsq_encoder`, so that both copies of the vision encoder are the same."""
    policy = UniARForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    encoder = load_tokenizer(folder)
    encoder.load_state_dict(policy.model.visual.state_dict())
    parts = {
        folder: policy,
        folder / "bsq_encoder": encoder,
        folder / "sd3_transformer": load_exactly(SD3Transformer2DModelWithSigLIP, folder / "sd3_transformer"),
        folder / "sd3_pipeline" / "vae": load_exactly(AutoencoderKL, folder / "sd3_pipeline" / "vae"),
    }
    for target, model in parts.items():
        model.to(torch.bfloat16).save_pretrained(target)
        _forget_folder(target / "config.json")


def _forget_folder(config: Path) -> None:
    """diffusers notes the folder that a model was loaded from; it is of this machine alone."""
    content = json.loads(config.read_text())
    if content.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
