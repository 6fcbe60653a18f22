"""`compressibility`: the size of the image as a JPEG file, as in DDPO (Black et al. 2023, arXiv:2305.13301)."""

import io
from typing import Literal

from PIL import Image

from rewards.contract.base import Reward, RewardBatch
from uniar.errors import UserError


class Compressibility(Reward):
    """Minus the JPEG size in kB (1 kB = 1000 bytes): plain images score high. Sizes grow with the resolution, so
    compare scores at one resolution only.

    Args:
        quality: JPEG quality, 1 to 95; DDPO uses 95.
        sign: -1 rewards small files ("compressibility"), 1 large ones ("incompressibility").

    Raises UserError for another quality.
    """

    def __init__(self, quality: int = 95, sign: Literal[-1, 1] = -1):
        if not 1 <= quality <= 95:
            raise UserError(f"quality is {quality}; JPEG qualities go from 1 to 95.")
        self.quality, self.sign = quality, sign

    def score(self, batch: RewardBatch) -> list[float]:
        return [self.sign * jpeg_kilobytes(image, self.quality) for image in batch.images]


def jpeg_kilobytes(image: Image.Image, quality: int) -> float:
    """Size of the image as a baseline JPEG, in units of 1000 bytes."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="JPEG", quality=quality)
    return buffer.tell() / 1000
