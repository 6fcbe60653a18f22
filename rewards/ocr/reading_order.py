"""In which order a person reads pieces of text that lie about in an image. Pure functions on boxes.

Boxes are quadrilaterals (N, 4, 2) in pixels: top left, top right, bottom right, bottom left, as the text stands.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Piece:
    """A box after the text as a whole is turned level, its place in the given order as `index`."""

    index: int
    left: float
    top: float
    right: float
    bottom: float

    @property
    def height(self) -> float:
        return self.bottom - self.top

    @property
    def stands(self) -> bool:
        """Whether it is a column of characters rather than a line."""
        return self.height > 1.5 * (self.right - self.left)


def reading_orders(boxes_N42: np.ndarray) -> list[list[int]]:
    """The orders in which N pieces may be meant to be read, each a permutation of 0 … N−1, without repeats: line by
    line across the whole image, and block after block (columns, scattered labels), each block line by line."""
    pieces = _level(np.asarray(boxes_N42, dtype=np.float64).reshape(-1, 4, 2))
    blocks = sorted(_groups(pieces, _in_one_block), key=lambda block: min((p.left, p.top) for p in block))
    across = [piece.index for piece in _line_by_line(pieces)]
    apart = [piece.index for block in blocks for piece in _line_by_line(block)]
    return [across] if apart == across else [across, apart]


def _level(boxes_N42: np.ndarray) -> list[Piece]:
    """On a slanting line later words are higher or lower than earlier ones, so the slant is taken out first."""
    top_N2, left_N2 = boxes_N42[:, 1] - boxes_N42[:, 0], boxes_N42[:, 3] - boxes_N42[:, 0]
    widths_N, heights_N = np.hypot(*top_N2.T), np.hypot(*left_N2.T)
    # The slant of a long piece is surer than that of a short one, and a column of characters says nothing of it.
    lying = widths_N >= heights_N
    angle = np.arctan2(top_N2[lying, 1].sum(), top_N2[lying, 0].sum()) if lying.any() else 0.0
    centres_N2 = boxes_N42.mean(axis=1) @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    halves_N2 = np.stack([widths_N, heights_N], axis=1) / 2
    corners_N4 = np.concatenate([centres_N2 - halves_N2, centres_N2 + halves_N2], axis=1)
    return [Piece(index, *corners) for index, corners in enumerate(corners_N4.tolist())]


def _line_by_line(pieces: Sequence[Piece]) -> list[Piece]:
    lines = sorted(_groups(pieces, _in_one_line), key=lambda line: np.mean([(p.top + p.bottom) / 2 for p in line]))
    return [piece for line in lines for piece in sorted(line, key=lambda piece: piece.left)]


def _in_one_line(a: Piece, b: Piece) -> bool:
    shared = min(a.bottom, b.bottom) - max(a.top, b.top)
    return shared > 0.5 * min(a.height, b.height) and not (a.stands or b.stands)


def _in_one_block(a: Piece, b: Piece) -> bool:
    """Whether two pieces are neighbours in a line, or in lines that follow each other."""
    between_x = max(a.left, b.left) - min(a.right, b.right)
    between_y = max(a.top, b.top) - min(a.bottom, b.bottom)
    height = min(a.height, b.height)
    return between_y < height if between_x < 0 else between_x < height and _in_one_line(a, b)


def _groups(pieces: Sequence[Piece], joined: Callable[[Piece, Piece], bool]) -> list[list[Piece]]:
    """The finest partition of the pieces that keeps each joined pair together."""
    groups: list[list[Piece]] = []
    for piece in pieces:
        near = [group for group in groups if any(joined(piece, other) for other in group)]
        groups = [group for group in groups if group not in near]
        groups.append([*(other for group in near for other in group), piece])
    return groups
