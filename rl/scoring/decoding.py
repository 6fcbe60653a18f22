"""Drawings → images, with noise that depends on nothing but the seed, the step and the sample."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image

from rl.policy.samples import DrawSettings, Sample
from uniar.conversations import Drawing
from uniar.seeds import seed_of

if TYPE_CHECKING:
    from uniar.modeling_decoder import UniARVisualDecoder


def decode(
    decoder: "UniARVisualDecoder",
    drawings: Sequence[Drawing],
    samples: Sequence[Sample],
    settings: DrawSettings,
    *,
    step: int = 0,
) -> list[Image.Image]:
    """B drawings of one size → B images, from one noise per prompt unless the settings say otherwise. Raises ValueError
    for drawings of several sizes."""
    if len({(drawing.rows, drawing.bits.shape) for drawing in drawings}) != 1:
        raise ValueError(f"{len(drawings)} drawings of several sizes, or none, cannot be decoded together.")
    seeds = [
        seed_of("decoder", settings.seed, step, s.record.id, *([] if settings.same_noise_per_group else [s.index]))
        for s in samples
    ]
    unit, (rows, columns) = decoder.bsq_encoder.config.pixels_per_token, drawings[0].grid
    return decoder.decode(
        torch.stack([drawing.bits for drawing in drawings]).to(decoder.device),
        ar_height=rows * unit,
        ar_width=columns * unit,
        upsampling_ratio=settings.upsampling_ratio,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.decoder_guidance_scale,
        noise_seeds=seeds,
        batch_size=settings.decode_batch_size,
    )
