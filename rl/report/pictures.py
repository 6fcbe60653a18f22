"""The pictures of a page: each once, however many rows show it, and no more bytes than a page may have."""

import base64
import functools

from PIL import Image

from rl.records.rows import encoded, load_stored

BUDGET = 10 * 2**20
"""bytes of a page's pictures, in base64"""
_SIZES = ((256, 85), (192, 80), (160, 70), (128, 60), (96, 50), (64, 40))
"""longest side and quality, tried in turn"""
_TRIED = 24


class PictureStore:
    """Pictures by number."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}

    def add(self, picture: bytes | None) -> int | None:
        """The number of a picture; the same for the same content."""
        return None if picture is None else self._numbers.setdefault(picture, len(self._numbers))

    def fitted(self, budget: int = BUDGET) -> list[str]:
        """All of them in base64, in order, made smaller where together they are more than the budget; where even small
        ones are, the last are empty."""
        pictures = list(self._numbers)
        if sum(map(len, pictures)) * 4 / 3 > budget:
            tried = pictures[:: max(len(pictures) // _TRIED, 1)]
            for size, quality in _SIZES:
                shrunk = sum(len(_shrunk(picture, size, quality)) for picture in tried) / len(tried)
                if shrunk * len(pictures) * 4 / 3 <= 0.95 * budget:
                    break
            pictures = [_shrunk(picture, size, quality) for picture in pictures]
        room, found = budget, []
        for picture in pictures:
            text = base64.b64encode(picture).decode()
            found.append(text if len(text) <= room else "")
            room -= len(found[-1])
        return found


@functools.lru_cache(maxsize=4096)
def _shrunk(picture: bytes, size: int, quality: int) -> bytes:
    """Kept between two pages of a run under way, of which most pictures are the same."""
    image = load_stored(picture)
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    return encoded(image, quality, effort=1)
