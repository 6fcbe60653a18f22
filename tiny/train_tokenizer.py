"""Stage 2: the bitwise tokenizer together with the SD3 transformer that draws from its bits.

Bits are signs, which have no gradient: the projections get that of the codes, straight through (BSQ, arXiv 2406.07548).
The transformer learns flow matching (arXiv 2403.03206) on the VAE's latents, given the features of the bits. Some bits
are flipped on the way, as a policy that samples every bit on its own will flip them.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tiny.captions import drawing
from tiny.model import GRID, LATENT_CHANNELS, VISION_HIDDEN, grids, new_sd3, new_vision, patches, vision_config
from tiny.train_vae import encode
from tiny.training import STATE_FOLDER, Stage, mixed_precision, pictures, randomness
from tiny.world import Scene, free_scene
from uniar.decoder_parts import encode_prompt, load_exactly
from uniar.modeling_vision import UniARVisionModel

STEPS = 6000
BATCH = 32
POOL = 16000
"""pictures that the stage draws from: their latents are computed once"""
DRAWN = 0.4
"""share of them that are scenes of captions; the rest are free"""
FLIPPED = 0.08
"""most of a picture's bits that are flipped; how many is uniform from none"""
COMMITMENT = 0.1
NO_FEATURES = 0.1
SHIFT = 3.0
"""of the flow's noise levels towards noise, as in the checkpoint's scheduler"""


class TokenizerAndDecoder(nn.Module):
    """What is trained together: the tokenizer, the SD3 transformer, and a linear head from features to latents.

    The head is thrown away afterwards. It gives each patch's bits a direct view of what they have to say.
    """

    def __init__(self) -> None:
        super().__init__()
        self.vision = new_vision()
        for merger in (self.vision.merger, self.vision.deepstack_merger_list):
            merger.requires_grad_(False)  # they speak to the language model, which has its own stage
        self.sd3 = new_sd3()
        self.head = nn.Linear(vision_config().levels * VISION_HIDDEN, 4 * LATENT_CHANNELS)

    def features(self, images: Tensor, flips: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, 3, 64, 64) → features (B, 64, levels·hidden) of the bits, and the commitment loss.

        `flips` (B, T, L, S, K) is true where a bit is flipped.
        """
        batch = len(images)
        projections = self.vision.encode_projections(patches(images), grids(batch)).float()
        sphere = F.normalize(projections, dim=-1).view(batch, GRID**2, *self.vision.config.code_shape)
        sphere = sphere * self.vision.config.bsq_dim**0.5
        codes = torch.where(sphere > 0, 1.0, -1.0)
        commitment = (sphere - codes).square().mean()
        codes = sphere + (codes - sphere).detach()
        if flips is not None:
            codes = torch.where(flips, -codes, codes)
        return self.vision.decoder_features((codes + 1) / 2, (GRID, GRID)), commitment


def train_tokenizer(folder: Path, *, seed: int, steps: int = STEPS, fast: bool = True) -> dict[str, float]:
    """Trains into `<folder>/bsq_encoder` and `<folder>/sd3_transformer`; needs stage 1. Returns its held-out numbers:
    the losses without flipped bits."""
    torch.manual_seed(seed)
    model = TokenizerAndDecoder()
    prompt_embeds, pooled = encode_prompt(folder / "sd3_pipeline", "cpu", torch.float32)
    images, latents = _pool(folder, seed)
    stage = Stage("tokenizer", folder, model, steps=steps, learning_rate=1.5e-3, seed=seed)

    def losses(chosen: Tensor, targets: Tensor, noise: torch.Generator, *, flipped: float) -> dict[str, Tensor]:
        batch = len(chosen)
        amount = flipped * torch.rand(batch, 1, 1, 1, 1, generator=noise)
        flips = torch.rand(batch, GRID**2, *vision_config().code_shape, generator=noise) < amount
        level = torch.rand(batch, generator=noise)
        level = SHIFT * level / (1 + (SHIFT - 1) * level)
        start = torch.randn(targets.shape, generator=noise)
        kept = torch.rand(batch, 1, 1, generator=noise) >= NO_FEATURES
        with mixed_precision(fast):
            features, commitment = model.features(chosen, flips)
            mix = level[:, None, None, None]
            (velocity,) = model.sd3(
                hidden_states=(1 - mix) * targets + mix * start,
                encoder_hidden_states=prompt_embeds.expand(batch, -1, -1),
                pooled_projections=pooled.expand(batch, -1),
                timestep=1000 * level,
                siglip_tensor=features * kept,
                return_dict=False,
            )
            read = model.head(features)
        return {
            "flow": (velocity.float() - (start - targets)).square().mean(),
            "head": (read.float() - _by_patch(targets)).square().mean(),
            "commitment": commitment,
        }

    for step in stage:
        _, noise = randomness(seed, "tokenizer", step)
        chosen = torch.randint(len(images), (BATCH,), generator=noise)
        parts = losses(_floats(images[chosen]), latents[chosen].float(), noise, flipped=FLIPPED)
        loss = parts["flow"] + parts["head"] + COMMITMENT * parts["commitment"]
        stage.update(loss, **{name: value for name, value in parts.items() if name != "loss"})

    stage.finish()
    rng, noise = randomness(seed, "tokenizer", "held out")
    held_out = pictures([free_scene(rng) for _ in range(256)])
    with torch.no_grad():
        parts = losses(held_out, encode(_vae(folder), held_out), noise, flipped=0.0)
    results = {name: float(value) for name, value in parts.items()}
    model.vision.save_pretrained(folder / "bsq_encoder")
    model.sd3.save_pretrained(folder / "sd3_transformer")
    stage.log(results)
    return results


def load_tokenizer(folder: Path) -> UniARVisionModel:
    return UniARVisionModel.from_pretrained(folder / "bsq_encoder", dtype=torch.float32)


def _scene(rng) -> Scene:
    return drawing(rng, "train").scene if rng.random() < DRAWN else free_scene(rng)


def _pool(folder: Path, seed: int) -> tuple[Tensor, Tensor]:
    """(POOL, 3, 64, 64) uint8 pictures, and their latents (POOL, 4, 16, 16) float16, which are kept in a file."""
    rng, _ = randomness(seed, "tokenizer", "pool")
    images = pictures([_scene(rng) for _ in range(POOL)]).add_(1).mul_(127.5).round_().to(torch.uint8)
    file = folder / STATE_FOLDER / "latents.safetensors"
    if not file.is_file():
        vae = _vae(folder)
        latents = torch.cat([encode(vae, _floats(part)).half() for part in images.split(256)])
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"latents": latents.contiguous()}, file)
    return images, load_file(file)["latents"]


def _vae(folder: Path) -> AutoencoderKL:
    return load_exactly(AutoencoderKL, folder / "sd3_pipeline" / "vae")


def _floats(images: Tensor) -> Tensor:
    return images.float().div_(127.5).sub_(1.0)


def _by_patch(latents: Tensor) -> Tensor:
    """(B, C, 16, 16) → (B, 64, 4·C): the latents of each patch, in raster order."""
    return F.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)
