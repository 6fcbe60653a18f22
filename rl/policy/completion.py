"""What a sample has made: a picture, texts, or both."""

from collections.abc import Sequence
from dataclasses import dataclass

from uniar.conversations import Drawing


@dataclass(frozen=True)
class Completion:
    """A sample when its episode has ended."""

    drawing: Drawing | None
    """the last picture that it drew; None where it drew none"""
    texts: tuple[str, ...] = ()
    """what it wrote, turn by turn"""
    episode: str = "draw"
    """the name of its episode"""

    @property
    def shape(self) -> tuple[int, ...] | None:
        """(rows, T, L, S, K) of the drawing: drawings of one shape are decoded together, and their bits stacked."""
        return None if self.drawing is None else (self.drawing.rows, *self.drawing.bits.shape)


def places_by_shape(completions: Sequence[Completion]) -> list[list[int]]:
    """The places of those whose drawings have one shape, for each shape there is; those without a drawing too."""
    found: dict[tuple[int, ...] | None, list[int]] = {}
    for place, completion in enumerate(completions):
        found.setdefault(completion.shape, []).append(place)
    return list(found.values())
