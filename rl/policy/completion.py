"""What a sample has made: a picture, texts, or both."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from rl.policy.samples import DrawSettings
from uniar.conversations import Drawing

if TYPE_CHECKING:
    from uniar.modeling_uniar import UniARForConditionalGeneration


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


def completions_of(
    bits: Iterable[Tensor], settings: DrawSettings, model: "UniARForConditionalGeneration"
) -> list[Completion]:
    """Samples that drew, each one picture of the settings' size. bits: (B, T, L, S, K), {0, 1}."""
    rows = settings.height // model.config.vision_config.pixels_per_token
    return [Completion(Drawing(one, rows)) for one in bits]


def places_by_shape(completions: Sequence[Completion]) -> list[list[int]]:
    """The places of those whose drawings have one shape, for each shape there is; those without a drawing too."""
    found: dict[tuple[int, ...] | None, list[int]] = {}
    for place, completion in enumerate(completions):
        found.setdefault(completion.shape, []).append(place)
    return list(found.values())
