"""Pictures that a user names: read in RGB, recognised by their content, and the size to draw them anew in."""

import hashlib
import math
from pathlib import Path

from PIL import Image, ImageOps

from uniar.errors import UserError

LARGEST_AREA = 512 * 512
"""Pixels of the largest edit that is drawn without being asked for a size: what the released model was trained on."""


def load_picture(path: Path) -> Image.Image:
    """The picture in RGB, turned as its EXIF data say, transparent parts on white. Raises UserError."""
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if not upright.has_transparency_data:
                return upright.convert("RGB")
            layers = upright.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    except FileNotFoundError:
        raise UserError(f"the image '{path}' does not exist.") from None
    except Image.UnidentifiedImageError:
        raise UserError(f"the image '{path}' is in no format that can be read (PNG, JPEG, WebP, …).") from None
    # What Pillow raises for damaged files besides OSError differs by format.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"the image '{path}' cannot be read: {error}.") from error


def picture_digest(path: Path) -> str:
    """SHA-256 of the file, so that a picture is the same one wherever it lies. Raises UserError."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        raise UserError(f"the image '{path}' does not exist.") from None
    except OSError as error:
        raise UserError(f"the image '{path}' cannot be read: {error.strerror}.") from error


def editing_size(
    picture: Image.Image, pixels_per_token: int, height: int | None = None, width: int | None = None
) -> tuple[int, int]:
    """(height, width) in pixels to draw an edit of `picture` in: what is asked for; a side that is not follows the
    picture's shape. Without either, the picture's own size, shrunk to LARGEST_AREA. Derived sides are rounded to the
    nearest multiple of `pixels_per_token`."""
    own_width, own_height = picture.size

    def rounded(side: float) -> int:
        return max(round(side / pixels_per_token), 1) * pixels_per_token

    if height is not None and width is not None:
        return height, width
    if height is not None:
        return height, rounded(own_width * height / own_height)
    if width is not None:
        return rounded(own_height * width / own_width), width
    scale = min(1.0, math.sqrt(LARGEST_AREA / (own_width * own_height)))
    height, width = rounded(own_height * scale), rounded(own_width * scale)
    while height * width > LARGEST_AREA and max(height, width) > pixels_per_token:
        if height >= width:
            height -= pixels_per_token
        else:
            width -= pixels_per_token
    return height, width
