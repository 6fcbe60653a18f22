"""Pictures with their VAE latents, computed once: what the tokenizer and the SD3 transformer are trained on."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from rl.tiny.captions import drawing
from rl.tiny.stages.stage import STATE_FOLDER, pictures, randomness
from rl.tiny.stages.vae import encode
from rl.tiny.world import Scene, free_scene
from uniar.decoder_parts import load_exactly

SIZE = 20000
DRAWN = 0.3
"""share of the pictures that are scenes of captions; the rest are free, and fuller than free scenes are on average"""


def load_vae(folder: Path) -> AutoencoderKL:
    return load_exactly(AutoencoderKL, folder / "sd3_pipeline" / "vae")


def load_pool(folder: Path, seed: int) -> dict[str, Tensor]:
    """`images` (SIZE, 3, 64, 64) uint8 and `latents` (SIZE, 4, 16, 16) float16, as the SD3 transformer sees them; kept
    in a file in `folder`. Needs the VAE."""
    file = folder / STATE_FOLDER / "pool.safetensors"
    if not file.is_file():
        vae = load_vae(folder)
        rng, _ = randomness(seed, "pool")
        images, latents = [], []
        for start in range(0, SIZE, 250):
            part = pictures([_scene(rng) for _ in range(min(250, SIZE - start))])
            latents.append(encode(vae, part).half())
            images.append(part.add(1).mul(127.5).round().to(torch.uint8))
        file.parent.mkdir(parents=True, exist_ok=True)
        made = {"images": torch.cat(images), "latents": torch.cat(latents)}
        save_file({name: tensor.contiguous() for name, tensor in made.items()}, file)
    return load_file(file)


def floats(images: Tensor) -> Tensor:
    """uint8 pictures → float32 in -1 to 1."""
    return images.float().div_(127.5).sub_(1.0)


def _scene(rng) -> Scene:
    return drawing(rng, "train").scene if rng.random() < DRAWN else free_scene(rng, counts=(1, 2, 3, 4, 4, 4))
