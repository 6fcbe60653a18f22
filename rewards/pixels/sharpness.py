"""`sharpness`: variance of the Laplacian (Pech-Pacheco et al. 2000): high for fine detail and noise, low for blur."""

import numpy as np
from PIL import Image

from rewards.contract.base import Reward, RewardBatch
from uniar.errors import UserError


class Sharpness(Reward):
    """The variance, over all inner pixels, of the grey image's Laplacian (kernel 0 1 0 / 1 −4 1 / 0 1 0).

    Grey is 0.299 R + 0.587 G + 0.114 B, from 0 to 255. 0 for a plain image, some hundreds for a sharp photograph,
    thousands for noise. It changes with the resolution, so compare scores at one resolution only. As a monitor (weight
    0) it shows images that go blurred, or noise that a reward takes for detail.

    Raises UserError for an image under 3 pixels wide or high.
    """

    usual_range = (0.0, 1000.0)

    def score(self, batch: RewardBatch) -> list[float]:
        return [laplacian_variance(image) for image in batch.images]


def laplacian_variance(image: Image.Image) -> float:
    """In squared grey levels. Raises UserError for an image without inner pixels."""
    if min(image.size) < 3:
        raise UserError(f"an image of {image.width}×{image.height} has no inner pixels to measure sharpness at.")
    grey_HW = np.asarray(image.convert("RGB"), dtype=np.float64) @ (0.299, 0.587, 0.114)
    around_HW = grey_HW[:-2, 1:-1] + grey_HW[2:, 1:-1] + grey_HW[1:-1, :-2] + grey_HW[1:-1, 2:]
    return float(np.var(around_HW - 4 * grey_HW[1:-1, 1:-1]))
