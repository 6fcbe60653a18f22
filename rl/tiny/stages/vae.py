"""Stage `vae`: the KL-VAE whose latents the SD3 transformer draws in (arXiv 2112.10752, without its adversarial loss).

Most steps see quarters of pictures: the network is convolutional, and a quarter costs a quarter.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from rl.tiny.stages.model import SIDE, new_vae
from rl.tiny.stages.stage import Stage, pictures, randomness
from rl.tiny.world import free_scene

STEPS = 3000
BATCH = 32
CROP = SIDE // 2
WHOLE_FROM = 0.85
"""share of the steps after which whole pictures are seen, 16 per step"""
KL_WEIGHT = 1e-5
HELD_OUT = 256


def train_vae(folder: Path, *, seed: int, steps: int = STEPS) -> dict[str, float]:
    """Trains the VAE into `<folder>/sd3_pipeline/vae`. Returns its held-out numbers: `psnr` in dB."""
    torch.manual_seed(seed)
    vae = new_vae()
    stage = Stage("vae", folder, vae, steps=steps, learning_rate=1.5e-3, seed=seed, weight_decay=0.0)
    for step in stage:
        rng, noise = randomness(seed, "vae", step)
        whole = step >= WHOLE_FROM * steps
        images = pictures([free_scene(rng) for _ in range(BATCH // 2 if whole else BATCH)])
        if not whole:
            top, left = rng.randrange(0, SIDE - CROP, 4), rng.randrange(0, SIDE - CROP, 4)
            images = images[:, :, top : top + CROP, left : left + CROP]
        posterior = vae.encode(images).latent_dist
        mean, deviation = posterior.mean, posterior.std
        latents = mean + deviation * torch.randn(mean.shape, generator=noise)
        decoded = vae.decode(latents).sample
        absolute = (decoded - images).abs().mean()
        squared = (decoded - images).square().mean()
        divergence = 0.5 * (mean.square() + deviation.square() - 1 - 2 * deviation.log()).mean()
        stage.update(absolute + squared + KL_WEIGHT * divergence, l1=absolute, kl=divergence)

    vae = stage.finish()
    rng, _ = randomness(seed, "vae", "held out")
    images = pictures([free_scene(rng) for _ in range(HELD_OUT)])
    mean = encode(vae, images, scaled=False)
    vae.register_to_config(scaling_factor=1 / float(mean.std()), shift_factor=float(mean.mean()))
    with torch.no_grad():
        decoded = torch.cat([vae.decode(part).sample for part in mean.split(32)])
    # Pixels run from -1 to 1, so the peak is 2.
    results = {"psnr": float(10 * torch.log10(4 / (decoded - images).square().mean()))}
    vae.save_pretrained(folder / "sd3_pipeline" / "vae")
    stage.log(results)
    return results


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, *, scaled: bool = True, batch_size: int = 64) -> Tensor:
    """(B, 3, 64, 64) in -1 to 1 → (B, 4, 16, 16) mean latents, `scaled` as the SD3 transformer sees them."""
    mean = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(batch_size)])
    return (mean - vae.config.shift_factor) * vae.config.scaling_factor if scaled else mean
