"""Stage `tokenizer`: the bitwise tokenizer.

Bits are signs, which have no gradient: the projections get that of the codes, straight through (BSQ, arXiv 2406.07548).
Two heads read the VAE's latents off the features of the bits, and are thrown away afterwards: a convolutional one shows
what the bits say together, a linear one keeps what it can of that easy to read. Some bits are flipped on the way, as a
policy that samples every bit on its own will flip them.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rl.tiny.stages.model import (
    GRID,
    LATENT_CHANNELS,
    PATCH,
    SIDE,
    VISION_HIDDEN,
    grids,
    new_vision,
    patches,
    vision_config,
)
from rl.tiny.stages.pool import floats, load_pool, load_vae
from rl.tiny.stages.stage import Stage, mixed_precision, pictures, randomness
from rl.tiny.stages.vae import encode
from rl.tiny.world import free_scene
from uniar.modeling_vision import UniARVisionModel

STEPS = 3000
BATCH = 64
FLIPPED = 0.04
"""most of a picture's bits that are flipped; how many is uniform from none"""
COMMITMENT = 0.05
SOFT = 0.2
"""share of the steps over which projections harden into codes; signs from the start learn more slowly"""
THINGS = 5.0
"""weight of patches that are not all background, which most are"""
LINEAR = 0.3
"""weight of the linear head's error beside the convolutional one's"""
HELD_OUT = 512


class Autoencoder(nn.Module):
    """The tokenizer and the heads that read latents off its bits."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.vision = new_vision(seed)
        for merger in (self.vision.merger, self.vision.deepstack_merger_list):
            merger.requires_grad_(False)  # they speak to the language model, which has its own stage
        features, width = vision_config().levels * VISION_HIDDEN, 192
        self.linear = nn.Conv2d(features, 4 * LATENT_CHANNELS, 1)
        self.convolutional = nn.Sequential(
            nn.Conv2d(features, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, 4 * LATENT_CHANNELS, 1),
        )

    def forward(
        self, images: Tensor, flips: Tensor | None = None, hardness: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, 64, 64) → latents (B, 4, 16, 16) read off the bits by the convolutional and by the linear head, and
        the commitment loss: how far the projections are from the codes that they become.

        `flips` (B, T, L, S, K) is true where a bit is flipped. Below a `hardness` of 1 codes are between the
        projections and their signs."""
        batch, config = len(images), self.vision.config
        projections = self.vision.encode_projections(patches(images), grids(batch)).float()
        sphere = F.normalize(projections, dim=-1).view(batch, GRID**2, *config.code_shape) * config.bsq_dim**0.5
        codes = torch.where(sphere > 0, 1.0, -1.0)
        commitment = (sphere - codes).square().mean()
        codes = sphere + hardness * (codes - sphere).detach()
        if flips is not None:
            codes = torch.where(flips, -codes, codes)
        features = self.vision.decoder_features((codes + 1) / 2, (GRID, GRID))
        side = SIDE // PATCH
        features = features.transpose(1, 2).unflatten(2, (side, side))
        read, plain = (F.pixel_shuffle(head(features), 2).float() for head in (self.convolutional, self.linear))
        return read, plain, commitment


def train_tokenizer(folder: Path, *, seed: int, steps: int = STEPS, fast: bool = True) -> dict[str, float]:
    """Trains into `<folder>/bsq_encoder`; needs the VAE. Returns its held-out numbers: `latents`, the mean squared
    error of what the head reads (their variance is 1), and how many `bits` are not the same in nearly all pictures."""
    torch.manual_seed(seed)
    pool = load_pool(folder, seed)
    model = Autoencoder(seed)
    model.vision.set_attn_implementation("eager")  # the backward of torch's fused attention is slow on a CPU
    stage = Stage("tokenizer", folder, model, steps=steps, learning_rate=2e-3, seed=seed, weight_decay=0.0)
    for step in stage:
        _, noise = randomness(seed, "tokenizer", step)
        chosen = torch.randint(len(pool["images"]), (BATCH,), generator=noise)
        images, latents = floats(pool["images"][chosen]), pool["latents"][chosen].float()
        hardness = min(step / (SOFT * steps), 1.0)
        amount = hardness * FLIPPED * torch.rand(BATCH, 1, 1, 1, 1, generator=noise)
        flips = torch.rand(BATCH, GRID**2, *vision_config().code_shape, generator=noise) < amount
        with mixed_precision(fast):
            read, plain, commitment = model(images, flips, hardness)
        weight, squares, plain_squares = _weight(images), (read - latents).square(), (plain - latents).square()
        loss = (weight * (squares + LINEAR * plain_squares)).mean() + COMMITMENT * commitment
        stage.update(loss, latents=squares.mean(), linear=plain_squares.mean(), commitment=commitment)

    stage.finish()
    rng, _ = randomness(seed, "tokenizer", "held out")
    images = pictures([free_scene(rng) for _ in range(HELD_OUT)])
    with torch.no_grad():
        read, _, _ = model(images)
        ones = model.vision.encode(patches(images), grids(HELD_OUT)).view(HELD_OUT, -1).float().mean(0)
    results = {
        "latents": float((read - encode(load_vae(folder), images)).square().mean()),
        "bits": float(((ones > 0.02) & (ones < 0.98)).sum()),
    }
    model.vision.save_pretrained(folder / "bsq_encoder")
    stage.log(results)
    return results


def _weight(images: Tensor) -> Tensor:
    """(B, 3, 64, 64) → (B, 1, 16, 16): THINGS where a patch has anything in it. Nothing ever stands in a corner."""
    things = (images != images[:, :, :1, :1]).any(1, keepdim=True).float()
    things = F.max_pool2d(things, PATCH).repeat_interleave(2, 2).repeat_interleave(2, 3)
    return 1 + (THINGS - 1) * things


def load_tokenizer(folder: Path) -> UniARVisionModel:
    return UniARVisionModel.from_pretrained(folder / "bsq_encoder", dtype=torch.float32)
