"""`color`: how much of the image is in a named colour. The example of the tutorial in docs/rewards.md."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from rewards.contract.base import Reward, RewardBatch
from uniar.errors import UserError, did_you_mean


class Color(Reward):
    """The share of pixels, 0 to 1, whose colour is near a given one.

    Nearness is the Euclidean distance in RGB in units of the distance from black to white: 0 is the colour itself,
    black to white is 1. A pixel counts fully up to `tolerance`, then less and less over the width of `softness`, then
    not at all. With `softness: 0` the score is a plain share of pixels; a wide one gives a reward that can be climbed
    from images that have none of the colour yet.

    Args:
        color: a CSS colour name or "#rrggbb". None takes each sample's metadata `color`; a sample without one has no
            score.
        tolerance: distance up to which a pixel counts fully.
        softness: further distance over which it fades out.

    Raises UserError for a colour that is not known and for negative distances.
    """

    def __init__(self, color: str | None = None, tolerance: float = 0.3, softness: float = 0.0):
        if tolerance < 0 or softness < 0:
            raise UserError(f"tolerance {tolerance} and softness {softness} are distances, they cannot be negative.")
        self.tolerance, self.softness = tolerance, softness
        self.color = None if color is None else parse_color(color)

    def check_sample(self, prompt: str, metadata: Mapping[str, Any]) -> None:
        self._color_of(metadata)

    def score(self, batch: RewardBatch) -> list[float | None]:
        colors = [self._color_of(metadata) for metadata in batch.metadata]
        pairs = zip(batch.images, colors, strict=True)
        return [None if color is None else self._share(image, color) for image, color in pairs]

    def _color_of(self, metadata: Mapping[str, Any]) -> tuple[int, int, int] | None:
        if self.color is not None or metadata.get("color") is None:
            return self.color
        return parse_color(metadata["color"])

    def _share(self, image: Image.Image, color: tuple[int, int, int]) -> float:
        pixels_HWC = np.asarray(image.convert("RGB"), dtype=np.float32)
        offset_HWC = (pixels_HWC - np.asarray(color, dtype=np.float32)) / (255 * math.sqrt(3))
        beyond_HW = np.sqrt(np.square(offset_HWC).sum(axis=2)) - self.tolerance
        if self.softness == 0:
            return float((beyond_HW <= 0).mean())
        return float(np.clip(1 - beyond_HW / self.softness, 0, 1).mean(dtype=np.float64))


def parse_color(name: str) -> tuple[int, int, int]:
    """RGB, 0 to 255 each, of a CSS colour name or "#rrggbb". Raises UserError."""
    try:
        return ImageColor.getrgb(name)[:3]
    except (ValueError, TypeError) as error:
        hint = did_you_mean(str(name).lower(), ImageColor.colormap)
        raise UserError(f"{name!r} is not a colour; a CSS colour name or '#rrggbb' is needed.{hint}") from error
