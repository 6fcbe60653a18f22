"""`preservation`: what an edit should have left alone, and left alone."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from rewards.contract.base import RewardBatch
from rewards.models.model_reward import ModelReward, Precision, cosines, numbers_only
from rewards.models.open_clip_model import OpenClip
from uniar.errors import UserError

_SIGMA, _RADIUS = 1.5, 5  # of SSIM's window, in pixels
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


class Preservation(ModelReward):
    """How like the picture that it edits an image is, at most 1. A sample that edits no picture has no score.

    Args:
        measure: ssim, the mean structural similarity of the grey images (Wang et al. 2004, a Gaussian window of 11
            pixels, σ 1.5), needs no model; clip, the cosine of their open_clip embeddings, is about what they show.
        mask: the metadata key of what may change and does not count: a list of boxes [left, top, right, bottom] in
            shares of the image, 0 to 1. null for none. A sample without it counts everywhere.
        model: for clip, as of `clip_score`.
        weights: for clip, as of `clip_score`.
        batch_size: images encoded at a time.
        device: where the model runs; null follows the trainer (a GPU if there is one).
        dtype: of weights and activations.

    Raises UserError for a mask that is not such a list, and for weights when they are loaded.
    """

    usual_range = (0.0, 1.0)

    def __init__(
        self,
        measure: Literal["ssim", "clip"] = "ssim",
        mask: str | None = "mask",
        model: str = "ViT-L-14",
        weights: str | None = "openai",
        batch_size: int = 32,
        device: str | None = None,
        dtype: Precision = "float32",
    ):
        super().__init__(batch_size, device, dtype)
        self.measure, self.mask = measure, mask
        self._source = OpenClip(model, weights) if measure == "clip" else None

    def build(self) -> torch.nn.Module:
        if self._source is None:
            return torch.nn.Identity()
        model = self._source.build()
        self._preprocess = self._source.preprocess(model)
        return model

    def check_sample(self, prompt: str, metadata: Mapping[str, Any]) -> None:
        self._may_change(metadata, (1, 1))

    def score(self, batch: RewardBatch) -> list[float | None]:
        self.load()
        rows = [row for row, sources in enumerate(batch.source_images) if sources]
        scores: list[float | None] = [None] * len(batch)
        if not rows:
            return scores
        images = [batch.images[row].convert("RGB") for row in rows]
        sources = [
            batch.source_images[row][0].convert("RGB").resize(image.size, Image.Resampling.BICUBIC)
            for row, image in zip(rows, images, strict=True)
        ]
        masks = [self._may_change(batch.metadata[row], image.size) for row, image in zip(rows, images, strict=True)]
        measured = self._ssim if self.measure == "ssim" else self._clip
        for row, score in zip(rows, measured(images, sources, masks), strict=True):
            scores[row] = score
        return scores

    def _ssim(
        self, images: Sequence[Image.Image], sources: Sequence[Image.Image], masks: Sequence[np.ndarray]
    ) -> list[float | None]:
        means: list[float | None] = []
        for image, source, mask in zip(images, sources, masks, strict=True):
            counted = ~mask
            means.append(float(ssim_map(image, source)[counted].mean()) if counted.any() else None)
        return means

    def _clip(
        self, images: Sequence[Image.Image], sources: Sequence[Image.Image], masks: Sequence[np.ndarray]
    ) -> list[float | None]:
        """With the source's own pixels where the image may differ."""
        kept = [
            Image.composite(source, image, Image.fromarray(mask))
            for image, source, mask in zip(images, sources, masks, strict=True)
        ]
        features = self.encoded([*kept, *sources], self._encode)
        return numbers_only(cosines(*features.chunk(2))).tolist()

    def _encode(self, images: Sequence[Image.Image]) -> torch.Tensor:
        pixels_BCHW = torch.stack([self._preprocess(image) for image in images])
        assert self._model is not None  # loaded by `score`
        return self._model.encode_image(pixels_BCHW.to(self._device, self.dtype), normalize=False)

    def _may_change(self, metadata: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
        """(H, W) bool of an image of `size` (width, height). Raises UserError."""
        given = None if self.mask is None else metadata.get(self.mask)
        mask = np.zeros(size[::-1], dtype=bool)
        if given is None:
            return mask
        if not isinstance(given, list) or not all(map(_is_box, given)):
            raise UserError(
                f"metadata {self.mask!r} is {given!r}; a list of boxes [left, top, right, bottom] in shares of the "
                "image, 0 to 1, is needed."
            )
        for left, top, right, bottom in given:
            rows = slice(round(top * size[1]), round(bottom * size[1]))
            mask[rows, round(left * size[0]) : round(right * size[0])] = True
        return mask


def ssim_map(image: Image.Image, other: Image.Image) -> np.ndarray:
    """(H, W) structural similarity at each pixel of two images of one size, -1 to 1; grey is 0.299 R + 0.587 G +
    0.114 B, and beyond the edge the image is mirrored."""
    from scipy.ndimage import gaussian_filter  # late: `rewards list` names rewards whose packages are not installed

    x, y = (np.asarray(picture.convert("RGB"), dtype=np.float64) @ (0.299, 0.587, 0.114) for picture in (image, other))

    def smooth(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, _SIGMA, radius=_RADIUS)

    mean_x, mean_y = smooth(x), smooth(y)
    var_x, var_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    cov = smooth(x * y) - mean_x * mean_y
    means = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    return means * (2 * cov + _C2) / (var_x + var_y + _C2)


def _is_box(box: Any) -> bool:
    numbers = isinstance(box, list) and len(box) == 4
    numbers = numbers and all(isinstance(side, int | float) and not isinstance(side, bool) for side in box)
    return numbers and 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1
