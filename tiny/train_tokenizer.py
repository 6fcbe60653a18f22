"""Stage 2: the bitwise tokenizer.

Bits are signs, which have no gradient: the projections get that of the codes, straight through (BSQ, arXiv 2406.07548).
A small head reads each patch's pixels off the features of its own bits, and is thrown away afterwards. Some bits are
flipped on the way, as a policy that samples every bit on its own will flip them.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiny.captions import drawing
from tiny.model import GRID, PATCH, VISION_HIDDEN, grids, new_vision, patches, vision_config
from tiny.training import Stage, mixed_precision, pictures, randomness
from tiny.world import Scene, free_scene
from uniar.modeling_vision import UniARVisionModel

STEPS = 4500
BATCH = 64
DRAWN = 0.3
"""share of the pictures that are scenes of captions; the rest are free"""
FLIPPED = 0.04
"""most of a picture's bits that are flipped; how many is uniform from none"""
COMMITMENT = 0.05
SOFT = 0.2
"""share of the steps over which projections harden into codes; signs from the start learn more slowly"""
THINGS = 5.0
"""weight of pixels that are not background, which is most of a picture"""
HELD_OUT = 512


class Autoencoder(nn.Module):
    """The tokenizer and the head that reads pixels off its bits."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.vision = new_vision(seed)
        for merger in (self.vision.merger, self.vision.deepstack_merger_list):
            merger.requires_grad_(False)  # they speak to the language model, which has its own stage
        features = vision_config().levels * VISION_HIDDEN
        self.head = nn.Sequential(nn.Linear(features, 2 * features), nn.GELU(), nn.Linear(2 * features, 3 * PATCH**2))

    def forward(self, images: Tensor, flips: Tensor | None = None, hardness: float = 1.0) -> tuple[Tensor, Tensor]:
        """(B, 3, 64, 64) → the same read off the bits, and the commitment loss: how far the projections are from the
        codes that they become. `flips` (B, T, L, S, K) is true where a bit is flipped. Below a `hardness` of 1 codes
        are between the projections and their signs."""
        batch, config = len(images), self.vision.config
        projections = self.vision.encode_projections(patches(images), grids(batch)).float()
        sphere = F.normalize(projections, dim=-1).view(batch, GRID**2, *config.code_shape) * config.bsq_dim**0.5
        codes = torch.where(sphere > 0, 1.0, -1.0)
        commitment = (sphere - codes).square().mean()
        codes = sphere + hardness * (codes - sphere).detach()
        if flips is not None:
            codes = torch.where(flips, -codes, codes)
        features = self.vision.decoder_features((codes + 1) / 2, (GRID, GRID))
        side = images.shape[-1] // PATCH
        read = self.head(features).transpose(1, 2).unflatten(2, (side, side))
        return F.pixel_shuffle(read, PATCH).float(), commitment


def train_tokenizer(folder: Path, *, seed: int, steps: int = STEPS, fast: bool = True) -> dict[str, float]:
    """Trains into `<folder>/bsq_encoder`. Returns its held-out numbers: `psnr` in dB of what the head reads, and how
    many `bits` of a picture are not the same in nearly all pictures."""
    torch.manual_seed(seed)
    model = Autoencoder(seed)
    model.vision.set_attn_implementation("eager")  # the backward of torch's fused attention is slow on a CPU
    stage = Stage("tokenizer", folder, model, steps=steps, learning_rate=2e-3, seed=seed, weight_decay=0.0)
    for step in stage:
        rng, noise = randomness(seed, "tokenizer", step)
        images = pictures([some_scene(rng) for _ in range(BATCH)])
        hardness = min(step / (SOFT * steps), 1.0)
        amount = hardness * FLIPPED * torch.rand(BATCH, 1, 1, 1, 1, generator=noise)
        flips = torch.rand(BATCH, GRID**2, *vision_config().code_shape, generator=noise) < amount
        with mixed_precision(fast):
            read, commitment = model(images, flips, hardness)
        background = images[:, :, :1, :1]  # nothing ever stands in a corner
        weight = torch.where((images != background).any(1, keepdim=True), THINGS, 1.0)
        difference = read - images
        error = (weight * (difference.abs() + difference.square())).mean()
        stage.update(error + COMMITMENT * commitment, l2=difference.square().mean(), commitment=commitment)

    stage.finish()
    rng, _ = randomness(seed, "tokenizer", "held out")
    images = pictures([free_scene(rng) for _ in range(HELD_OUT)])
    with torch.no_grad():
        read, _ = model(images)
        ones = model.vision.encode(patches(images), grids(HELD_OUT)).view(HELD_OUT, -1).float().mean(0)
    results = {
        "psnr": float(10 * torch.log10(4 / (read - images).square().mean())),
        "bits": float(((ones > 0.02) & (ones < 0.98)).sum()),
    }
    model.vision.save_pretrained(folder / "bsq_encoder")
    stage.log(results)
    return results


def load_tokenizer(folder: Path) -> UniARVisionModel:
    return UniARVisionModel.from_pretrained(folder / "bsq_encoder", dtype=torch.float32)


def some_scene(rng) -> Scene:
    """What the tokenizer and its decoder are trained on: scenes of captions, and free ones."""
    return drawing(rng, "train").scene if rng.random() < DRAWN else free_scene(rng, counts=(1, 2, 3, 4, 4, 4))
