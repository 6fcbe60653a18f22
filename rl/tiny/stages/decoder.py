"""Stage `decoder`: the SD3 transformer that draws from the tokenizer's bits.

Flow matching (arXiv 2403.03206) on the VAE's latents, given the features of the bits. Features are dropped at random,
so that guidance works, and some bits are flipped, as a policy that samples every bit on its own will flip them.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rl.tiny.stages.model import GRID, VAE_FACTOR, grids, new_sd3, patches
from rl.tiny.stages.pool import floats, load_pool, load_vae
from rl.tiny.stages.stage import Stage, flip, mixed_precision, pictures, randomness
from rl.tiny.stages.tokenizer import FLIPPED, load_tokenizer
from rl.tiny.stages.vae import encode
from rl.tiny.world import free_scene
from uniar.decoder_parts import encode_prompt
from uniar.modeling_vision import UniARVisionModel

STEPS = 5000
BATCH = 32
NO_FEATURES = 0.1
SHIFT = 3.0
"""of the flow's noise levels towards noise, as in the checkpoint's scheduler"""
THINGS = 4.0
"""weight of latents that show a thing or its edge, against 1 of the bare background's: small things are few latents"""
HELD_OUT = 256


def train_decoder(folder: Path, *, seed: int, steps: int = STEPS, fast: bool = True) -> dict[str, float]:
    """Trains into `<folder>/sd3_transformer`; needs stages 1 and 2. Returns its held-out number: the flow-matching loss
    (mean squared error of the velocity) without flipped bits."""
    torch.manual_seed(seed)
    vision = load_tokenizer(folder)
    sd3 = new_sd3()
    prompt_embeds, pooled = encode_prompt(folder / "sd3_pipeline", "cpu", torch.float32)
    pool = load_pool(folder, seed)
    pool_bits = torch.cat([_bits(vision, floats(images)) for images in pool["images"].split(250)])
    stage = Stage("decoder", folder, sd3, steps=steps, learning_rate=1.5e-3, seed=seed)

    def flow_loss(latents: Tensor, bits: Tensor, noise: torch.Generator, weights: Tensor | float = 1.0) -> Tensor:
        batch = len(bits)
        level = torch.rand(batch, generator=noise)
        level = SHIFT * level / (1 + (SHIFT - 1) * level)
        start = torch.randn(latents.shape, generator=noise)
        kept = torch.rand(batch, 1, 1, generator=noise) >= NO_FEATURES
        mix = level[:, None, None, None]
        with torch.no_grad():
            features = vision.decoder_features(bits, (GRID, GRID)) * kept
        with mixed_precision(fast):
            (velocity,) = sd3(
                hidden_states=(1 - mix) * latents + mix * start,
                encoder_hidden_states=prompt_embeds.expand(batch, -1, -1),
                pooled_projections=pooled.expand(batch, -1),
                timestep=1000 * level,
                siglip_tensor=features,
                return_dict=False,
            )
        return (weights * (velocity.float() - (start - latents)).square()).mean()

    for step in stage:
        _, noise = randomness(seed, "decoder", step)
        chosen = torch.randint(len(pool_bits), (BATCH,), generator=noise)
        bits = flip(pool_bits[chosen], FLIPPED, noise)
        weights = _weights(floats(pool["images"][chosen]))
        stage.update(flow_loss(pool["latents"][chosen].float(), bits, noise, weights))

    stage.finish()
    rng, noise = randomness(seed, "decoder", "held out")
    images = pictures([free_scene(rng) for _ in range(HELD_OUT)])
    with torch.no_grad():
        results = {"flow": float(flow_loss(encode(load_vae(folder), images), _bits(vision, images), noise))}
    sd3.save_pretrained(folder / "sd3_transformer")
    stage.log(results)
    return results


def _weights(images: Tensor) -> Tensor:
    """(B, 3, 64, 64) → (B, 1, 16, 16) with mean 1. The top left pixel is background in every picture."""
    different = (images - images[..., :1, :1]).abs().amax(1, keepdim=True) > 0.1
    things = F.max_pool2d(F.max_pool2d(different.float(), VAE_FACTOR), 3, stride=1, padding=1)
    weights = 1 + (THINGS - 1) * things
    return weights / weights.mean()


@torch.no_grad()
def _bits(vision: UniARVisionModel, images: Tensor) -> Tensor:
    """(B, 3, 64, 64) → (B, T, L, S, K)."""
    bits = vision.encode(patches(images), grids(len(images)))
    return bits.view(len(images), GRID**2, *bits.shape[1:])
