"""Finds the things of UniAR-Tiny's world in pixels alone: shape, colour, centre and extent.

What differs from the background is split into connected parts. Of each part the colour is that of its strongest pixels,
and the share of it in every pixel around is compared with all shapes in all extents, both centred on their centroids.
Blur, noise and colours that are a little off leave the shares, and so the best match, much as they are.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image
from scipy import ndimage

from rl.tiny.world import BACKGROUNDS, COLORS, SHAPES, SIDE, SIZES, SUPERSAMPLING, Scene, Thing, outline

UNCLEAR = "unclear"
"""A shape or colour that is none of the world's."""

CONTRAST = 40.0  # distance from the background in RGB (0 to 255) from which a pixel is part of something
SOLID = 0.45  # share of its part's own contrast from which a pixel is inside rather than at the edge
SMALLEST = 36  # pixels; a smaller part is a speck
COLOR_DISTANCE = 95.0  # in RGB; a colour farther than this from all the world's is unclear
IMPURITY = 0.3  # of a part's contrast; a part whose pixels differ by more from shares of its colour has no one colour
LIKENESS = 0.92
"""From which likeness to it (see `_likeness`) a part counts as a shape. Sharp, blurred and noisy shapes have 0.95 or
more, nearly all whose outline wavers by a pixel 0.92; a half circle or a triangle upside down has less than 0.9."""

CANVAS = 32  # pixels; the shapes' side when they are compared
EXTENTS = range(min(SIZES.values()) - 3, max(SIZES.values()) + 4)
BLUR = 0.6  # pixels, of the shapes that parts are compared with


@dataclass(frozen=True)
class Sighting:
    """Something that was found.

    Attributes:
        shape: one of SHAPES, or UNCLEAR.
        color: one of COLORS, or UNCLEAR.
        x, y: centre of its box in pixels.
        extent: width and height of the best matching shape's box in pixels.
        likeness: to that shape, 0 to 1.
    """

    shape: str
    color: str
    x: float
    y: float
    extent: float
    likeness: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) in pixels."""
        half = self.extent / 2
        return self.x - half, self.y - half, self.x + half, self.y + half


def detect(image: Image.Image, likeness: float = LIKENESS) -> list[Sighting]:
    """What is in a picture, the likest to its shape first; UNCLEAR shapes are those below `likeness`. A picture of
    another size is scaled to SIDE × SIDE."""
    pixels_HWC = _pixels(image)
    background_C = _background(pixels_HWC)
    offsets_HWC = pixels_HWC - background_C
    parts, count = _parts(np.linalg.norm(offsets_HWC, axis=2))
    sightings = [_sighting(offsets_HWC, background_C, parts, part, likeness) for part in range(1, count + 1)]
    return sorted(sightings, key=lambda sighting: -sighting.likeness)


def seen_scene(image: Image.Image) -> Scene | None:
    """A picture as a scene, to ask questions about; None where it has nothing, something unclear, or more things than
    this world's pictures."""
    sightings = detect(image)
    if not 1 <= len(sightings) <= 4 or any(UNCLEAR in (each.shape, each.color) for each in sightings):
        return None
    return Scene(
        tuple(
            Thing(each.shape, each.color, _nearest_size(each.extent), round(each.x), round(each.y))
            for each in sightings
        ),
        seen_background(image),
    )


def seen_background(image: Image.Image) -> str:
    """The background of the world that a picture's is nearest to."""
    background_C = _background(_pixels(image))
    return min(BACKGROUNDS, key=lambda name: float(np.linalg.norm(background_C - BACKGROUNDS[name])))


def _nearest_size(extent: float) -> str:
    return min(SIZES, key=lambda size: abs(SIZES[size] - extent))


def _pixels(image: Image.Image) -> np.ndarray:
    image = image.convert("RGB")
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(image, dtype=np.float32)


def _background(pixels_HWC: np.ndarray) -> np.ndarray:
    return np.median(pixels_HWC, axis=(0, 1))  # things cover less than half of a picture


def _parts(contrast_HW: np.ndarray) -> tuple[np.ndarray, int]:
    """(H, W) with the number of the part each pixel is inside of, from 1; 0 for none. And how many there are."""
    labels, count = ndimage.label(contrast_HW > CONTRAST)
    inside = np.zeros_like(labels, dtype=bool)
    for label, where in enumerate(ndimage.find_objects(labels), start=1):
        own = labels[where] == label
        inside[where] |= own & (contrast_HW[where] > SOLID * np.percentile(contrast_HW[where][own], 90))
    labels, count = ndimage.label(inside, structure=np.ones((3, 3)))  # what only blur had joined comes apart
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    numbers = np.zeros(count + 1, dtype=int)
    kept = np.flatnonzero(sizes[1:] >= SMALLEST) + 1
    numbers[kept] = np.arange(1, len(kept) + 1)
    return numbers[labels], len(kept)


def _sighting(
    offsets_HWC: np.ndarray, background_C: np.ndarray, parts: np.ndarray, part: int, threshold: float
) -> Sighting:
    inside = parts == part
    own = offsets_HWC[inside]
    strength = np.linalg.norm(own, axis=1)
    color_C = np.median(own[strength >= np.median(strength)], axis=0)
    around = ndimage.binary_dilation(inside, iterations=2) & ((parts == 0) | inside)
    share_HW = np.clip(offsets_HWC @ (color_C / (color_C @ color_C)), 0, 1) * around
    row, column = (float((axis * share_HW).sum() / share_HW.sum()) for axis in np.indices(share_HW.shape))
    impurity = np.linalg.norm(own - share_HW[inside][:, None] * color_C, axis=1).mean() / np.linalg.norm(color_C)
    shape, extent, (right, down), likeness = _likeness(_centered(share_HW, row, column))
    return Sighting(
        shape if likeness >= threshold else UNCLEAR,
        _color_name(background_C + color_C) if impurity <= IMPURITY else UNCLEAR,
        column + 0.5 - right,
        row + 0.5 - down,
        extent,
        likeness,
    )


def _color_name(rgb_C: np.ndarray) -> str:
    distances = np.linalg.norm(np.array(list(COLORS.values())) - rgb_C, axis=1)
    nearest = int(distances.argmin())
    return list(COLORS)[nearest] if distances[nearest] <= COLOR_DISTANCE else UNCLEAR


def _centered(share_HW: np.ndarray, row: float, column: float) -> np.ndarray:
    """(CANVAS, CANVAS): what is around (row, column), with that point in the very middle."""
    middle = (CANVAS - 1) / 2
    return ndimage.affine_transform(
        share_HW, (1.0, 1.0), (row - middle, column - middle), output_shape=(CANVAS, CANVAS), order=1
    )


def _likeness(share_HW: np.ndarray) -> tuple[str, int, tuple[float, float], float]:
    """The best match of shares that are centred on their centroid: the shape, its extent, from its box's centre to its
    centroid (right, down), and the likeness 2 a·b / (a·a + b·b), which is 1 only where they are equal."""
    names, shapes_NP, squares_N = _shapes()
    own = share_HW.ravel()
    likeness_N = 2 * (shapes_NP @ own) / (squares_N + own @ own)
    best = int(likeness_N.argmax())
    return *names[best], float(likeness_N[best])


@cache
def _shapes() -> tuple[list[tuple[str, int, tuple[float, float]]], np.ndarray, np.ndarray]:
    """All shapes in all EXTENTS: (shape, extent, offset of the centroid); (N, CANVAS²) shares; (N,) their squares."""
    names, shares = [], []
    side, scale = CANVAS * SUPERSAMPLING, SUPERSAMPLING
    for shape in SHAPES:
        for extent in EXTENTS:
            drawn = min(SIZES.values(), key=lambda size: abs(size - extent))
            mask = outline(shape, drawn).resize((extent * scale, extent * scale))
            weights = np.asarray(mask, dtype=np.float64)
            down, right = (float((axis * weights).sum() / weights.sum()) + 0.5 for axis in np.indices(weights.shape))
            canvas = Image.new("L", (side, side))
            canvas.paste(mask, (round(side / 2 - right), round(side / 2 - down)))
            blurred = ndimage.gaussian_filter(np.asarray(canvas, dtype=np.float32) / 255, BLUR * scale)
            shares.append(blurred.reshape(CANVAS, scale, CANVAS, scale).mean(axis=(1, 3)).ravel())
            names.append((shape, extent, (right / scale - extent / 2, down / scale - extent / 2)))
    stacked = np.stack(shares)
    return names, stacked, np.square(stacked).sum(axis=1)
