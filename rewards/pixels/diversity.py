"""`diversity`: how far an image is from the others that were drawn for its prompt."""

from typing import Literal

import numpy as np
import torch
from PIL import Image

from rewards.contract.base import Reward, RewardBatch
from uniar.errors import UserError


class Diversity(Reward):
    """The mean distance of a sample to the other samples of its prompt in the batch, 0 to 1: 0 where all are alike.
    Averaged over a prompt's samples it is their mean pairwise distance. A sample alone with its prompt has no score.

    Training and evaluation compare all samples of a prompt, on any number of processes. As a monitor (weight 0) it
    shows a policy that draws one image over and over.

    Args:
        of: "images": mean absolute difference of red, green and blue, both images at `size` × `size`; "bits": share of
            visual bits that differ.
        size: side of the thumbnails compared, in pixels.

    Raises UserError for a size below 1, and for "bits" where a batch comes without.
    """

    pointwise = False
    usual_range = (0.0, 1.0)

    def __init__(self, of: Literal["images", "bits"] = "images", size: int = 64):
        if size < 1:
            raise UserError(f"size is {size}; at least 1 pixel is needed.")
        self.of, self.size = of, size

    def score(self, batch: RewardBatch) -> list[float | None]:
        if self.of == "bits" and batch.bits is None:
            raise UserError("diversity of bits needs visual bits, and this batch has none; write of: images.")
        groups: dict[str, list[int]] = {}
        for row, prompt in enumerate(batch.prompts):
            groups.setdefault(prompt, []).append(row)
        scores: list[float | None] = [None] * len(batch)
        for rows in groups.values():
            if len(rows) > 1:
                points_GD = self._points(batch, rows)
                distances_GG = torch.cdist(points_GD, points_GD, p=1) / points_GD.shape[1]
                for row, distance in zip(rows, (distances_GG.sum(1) / (len(rows) - 1)).tolist(), strict=True):
                    scores[row] = distance
        return scores

    def _points(self, batch: RewardBatch, rows: list[int]) -> torch.Tensor:
        """(G, D) float64 whose mean absolute difference is the distance: of bits, the share that differs."""
        if self.of == "bits":
            return batch.bits[rows].flatten(1).double()
        return self._thumbnails([batch.images[row] for row in rows])

    def _thumbnails(self, images: list[Image.Image]) -> torch.Tensor:
        """(G, size · size · 3) float64, 0 to 1."""
        size = (self.size, self.size)
        small = [image.convert("RGB").resize(size, Image.Resampling.BOX) for image in images]
        return torch.from_numpy(np.stack([np.asarray(image) for image in small])).flatten(1).double() / 255
