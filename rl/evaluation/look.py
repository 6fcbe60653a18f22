"""What the pictures of an evaluation look like besides their scores: a lens for reward hacking."""

import functools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rl.records.rows import load_stored

_SMALL = 16
_ALIKE = 0.02
"""root mean square distance of two small pictures, of 1, below which they are near-duplicates"""
_MOST_COMPARED = 1200


@dataclass(frozen=True)
class Look:
    """Means over the pictures of an evaluation."""

    sharpness: float
    """variance of the Laplacian of the brightness, in which 1 is white, times 1000"""
    saturation: float
    brightness: float
    kilobytes: float
    """of the WebP file: how much there is in a picture"""
    spread: float
    """root mean square distance of two pictures of one prompt, or, with one sample each, of two prompts"""
    within_prompts: bool
    duplicates: int
    """pictures that nearly repeat one of another prompt"""
    compared: int
    """pictures that were compared with each other"""

    def metrics(self) -> dict[str, float]:
        """Behind eval_look/ in the log; near_duplicates is a share."""
        return {
            "diversity": self.spread,
            "sharpness": self.sharpness,
            "near_duplicates": self.duplicates / self.compared,
        }


def look_at(rows: pa.Table) -> Look | None:
    """None where no row has a picture."""
    kept = [(row["id"], row["picture"]) for row in rows.select(["id", "picture"]).to_pylist() if row["picture"]]
    if not kept:
        return None
    measured, small = zip(*(_measured(picture) for _, picture in kept), strict=True)
    prompts = np.unique([identity for identity, _ in kept], return_inverse=True)[1][:_MOST_COMPARED]
    distances = _distances(np.stack(small[:_MOST_COMPARED]))
    same = (prompts[:, None] == prompts) & ~np.eye(len(prompts), dtype=bool)
    other = prompts[:, None] != prompts
    compared = same if same.any() else other
    spread = float(distances[compared].mean()) if compared.any() else float("nan")
    repeats = int((np.where(other, distances, np.inf) < _ALIKE).any(1).sum())
    means = np.mean(measured, axis=0).tolist()
    return Look(*means, spread=spread, within_prompts=bool(same.any()), duplicates=repeats, compared=len(prompts))


@functools.lru_cache(maxsize=4096)
def _measured(picture: bytes) -> tuple[tuple[float, float, float, float], np.ndarray]:
    """Sharpness, saturation, brightness and kilobytes, and a small copy. Kept between two pages of a run under way."""
    image = load_stored(picture)
    red, green, blue = (np.asarray(band, dtype=np.float32) / 255 for band in image.split())
    grey = (red + green + blue) / 3
    low, high = np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)
    edges = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    sharpness = float(edges.var()) * 1000 if edges.size else 0.0
    saturation = float(((high - low) / np.maximum(high, 1e-6)).mean())
    copy = np.asarray(image.resize((_SMALL, _SMALL)), dtype=np.float32).ravel() / 255
    return (sharpness, saturation, float(grey.mean()), len(picture) / 1000), copy


def _distances(vectors: np.ndarray) -> np.ndarray:
    squares = (vectors**2).sum(1)
    return np.sqrt(np.maximum(squares[:, None] + squares - 2 * vectors @ vectors.T, 0) / vectors.shape[1])
