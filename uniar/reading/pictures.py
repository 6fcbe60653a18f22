"""Pictures that a user names: the one loader of them, what it refuses, and the size to draw one anew in."""

import hashlib
import io
import math
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, features

from uniar.errors import UserError, shortened
from uniar.reading.files import ADDRESS, reason_of, user_path

Source = str | Path | bytes
"""The path of a picture, or the content of its file."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What is read, recognised by content. Others of Pillow's formats run programs (EPS) or are rarely met and little
tested."""

MOST_PIXELS = 2**26
LARGEST_ASPECT = 200
"""longer over shorter side; the processor of Qwen2-VL refuses more"""

_ENDS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9", "GIF": b";"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the picture upright"""
_LARGEST_SAMPLE = (281, 341)
"""the tags of TIFF that say which value is white: MaxSampleValue, SMaxSampleValue"""


def picture_name(source: Source | str) -> str:
    """What errors call a picture: "the image 'cat.png'", an address cut short."""
    text = "…" if isinstance(source, bytes) else str(source)
    return f"the image '{shortened(text) if ADDRESS.match(text) else text}'"


def picture_path(given: str, folder: Path, where: str) -> str | Path:
    """The path of a picture that a file in `folder` names; an address stays one, and is refused where it is opened.
    Raises UserError, which begins with `where`, for what no file can be called."""
    try:
        return given if ADDRESS.match(given) else folder / user_path(given)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


class PictureTooLarge(UserError):
    """More pixels than are read."""


def load_picture(source: Source, name: str = "") -> Image.Image:
    """The picture in RGB, as `in_rgb` makes it; of several frames the first. `name` is what errors call it. Raises
    UserError for what is not a file with a picture in one of FORMATS, and for one that is too large or cut short."""
    name = name or picture_name(source)
    with open_picture(source, name) as image:
        return in_rgb(image, name)


def check_picture(source: Source, name: str = "") -> None:
    """Raises UserError as `load_picture` does, at the price of reading a header. The picture is decoded only where its
    file does not end as files of its format do; damage elsewhere is found when it is loaded."""
    name = name or picture_name(source)
    with open_picture(source, name) as image:
        if not _ends_well(source, image.format):
            in_rgb(image, name)


def open_picture(
    source: Source,
    name: str,
    formats: Sequence[str] = FORMATS,
    most_pixels: int = MOST_PIXELS,
    largest_aspect: int = LARGEST_ASPECT,
) -> Image.Image:
    """The picture with its header read and its size checked, not decoded. Raises UserError."""
    with _as_sentences(name, formats, most_pixels):
        stream = io.BytesIO(source) if isinstance(source, bytes) else require_picture_file(source, name)
        formats = [format for format in formats if format != "AVIF" or features.check("avif")]
        image = Image.open(stream, formats=formats)
        check_shape(*image.size, name, most_pixels, largest_aspect)
        return image


def in_rgb(image: Image.Image, name: str = "the image") -> Image.Image:
    """Any picture in RGB: turned as its EXIF data say, transparent parts on white, 8 bits per channel. 16-bit values
    are scaled; of 32 bits and floats, white is what the file declares, else 1 for floats. Raises UserError for one that
    `check_shape` refuses, that cannot be decoded, or whose white is not known."""
    check_shape(*image.size, name)
    with _as_sentences(name):
        image.load()  # which turns a TIFF
        turn = _turn(image)
        upright = image.copy() if turn is None else image.transpose(turn)
        if upright.mode[0] in "IF":
            return Image.fromarray(_in_8_bits(upright, _white(image), name)).convert("RGB")
        key = upright.info.get("transparency")
        if isinstance(key, tuple) and max(key) > 255:  # of 16 bits, as the file's channels were
            upright.info["transparency"] = tuple(value >> 8 for value in key)
        if not upright.has_transparency_data:
            return upright.convert("RGB")
        layers = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """That makes it upright, as the EXIF data say; None where they say nothing, or are broken."""
    try:
        return _TURNS[image.getexif()[ExifTags.Base.Orientation]]
    except Exception:  # Pillow's readers raise anything from struct.error to SyntaxError on broken data
        return None


def check_shape(
    width: int, height: int, name: str, most_pixels: int = MOST_PIXELS, largest_aspect: int = LARGEST_ASPECT
) -> None:
    """Raises PictureTooLarge for more pixels, and UserError for a side more than `largest_aspect` times the other."""
    if width * height > most_pixels:
        raise PictureTooLarge(f"{name} has {width} × {height} pixels; at most {most_pixels} pixels are read.")
    if max(width, height) > largest_aspect * min(width, height):
        raise UserError(
            f"{name} has {width} × {height} pixels; one side may be {largest_aspect} times the other at most."
        )


def require_picture_file(source: str | Path, name: str) -> Path:
    """The path of a file. Raises UserError for an address, and for a path where no file is."""
    if not str(source):
        raise UserError(f"{name} has an empty path.")
    if ADDRESS.match(str(source)):
        raise UserError(f"{name} is an address; save the picture and give the path of its file.")
    if "\0" in str(source):
        raise UserError(f"{name} has a NUL in its path.")
    try:
        if not stat.S_ISREG(Path(source).stat().st_mode):
            raise UserError(f"{name} is not a file.")
    except FileNotFoundError:
        raise UserError(f"{name} does not exist.") from None
    except UserError:
        raise
    except (OSError, ValueError) as error:  # no rights, a name too long; half of a character in it
        raise UserError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    return Path(source)


def picture_to_edit(source: Source, height: int, width: int, name: str = "") -> Image.Image:
    """The picture in the size of the image to draw, resized once, as the model was trained (docs/checkpoint-format.md,
    6); the processor then finds nothing to resize."""
    return load_picture(source, name).resize((width, height), Image.Resampling.BICUBIC)


def picture_digest(source: str | Path) -> str:
    """SHA-256 of the file, so that a picture is the same one wherever it lies. Raises UserError."""
    with _as_sentences(name := picture_name(source)):
        return hashlib.sha256(require_picture_file(source, name).read_bytes()).hexdigest()


@contextmanager
def _as_sentences(name: str, formats: Sequence[str] = FORMATS, most_pixels: int = MOST_PIXELS) -> Iterator[None]:
    """Whatever Pillow raises as a UserError, and its warnings dropped."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Image.UnidentifiedImageError:
        raise UserError(f"{name} is not a whole picture in a format that is read ({', '.join(formats)}).") from None
    except Image.DecompressionBombError:
        raise PictureTooLarge(f"{name} has far more than the {most_pixels} pixels that are read.") from None
    except Exception as error:  # Pillow's readers raise anything from struct.error to SyntaxError on broken files
        raise UserError(f"{name} cannot be read: {getattr(error, 'strerror', None) or reason_of(error)}.") from error


def _ends_well(source: Source, format: str | None) -> bool:
    """Whether the file ends as whole files of its format do; False where its format has no such end."""
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(size - 8, 0))
        end, _ = file.read(), file.seek(4)
        return (
            end.endswith(_ENDS[format])
            if format in _ENDS
            else (format == "WEBP" and int.from_bytes(file.read(4), "little") + 8 <= size)
        )


def _white(image: Image.Image) -> float | None:
    """The value that is white in a picture of one channel of integers or floats; None where nothing says."""
    if image.mode != "F" and (image.mode != "I" or image.format in ("PNG", "PPM")):  # which Pillow scales to 16 bits
        return 65535
    tags = getattr(image, "tag_v2", {})
    declared = [float(np.ravel(tags[tag])[0]) for tag in _LARGEST_SAMPLE if tag in tags]
    return declared[-1] if declared and declared[-1] > 0 else 1 if image.mode == "F" else None


def _in_8_bits(image: Image.Image, white: float | None, name: str) -> np.ndarray:
    """(H, W) uint8 of a picture of one channel of integers or floats. Raises UserError without a white, and for values
    beyond it."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
    if white is None or values.max() > white:
        kind = "floats" if image.mode == "F" else "integers of 32 bits"
        raise UserError(
            f"{name} has {kind} up to {values.max():g}, and its file does not say which value is white; save it with 8 "
            "or 16 bits per channel."
        )
    grey = np.rint(values.clip(0) * (255 / white)).astype(np.uint8)
    if image.has_transparency_data:
        grey[values == image.info["transparency"]] = 255
    return grey


def editing_size(
    picture: Image.Image, pixels_per_token: int, largest_area: int, height: int | None = None, width: int | None = None
) -> tuple[int, int]:
    """(height, width) in pixels to draw an edit of `picture` in: what is asked for; a side that is not follows the
    picture's shape. Without either, the picture's own size, shrunk to `largest_area` pixels. Derived sides are rounded
    to the nearest multiple of `pixels_per_token`."""
    own_width, own_height = picture.size

    def rounded(side: float) -> int:
        return max(round(side / pixels_per_token), 1) * pixels_per_token

    if height is not None and width is not None:
        return height, width
    if height is not None:
        return height, rounded(own_width * height / own_height)
    if width is not None:
        return rounded(own_height * width / own_width), width
    scale = min(1.0, math.sqrt(largest_area / (own_width * own_height)))
    height, width = rounded(own_height * scale), rounded(own_width * scale)
    while height * width > largest_area and max(height, width) > pixels_per_token:
        if height >= width:
            height -= pixels_per_token
        else:
            width -= pixels_per_token
    return height, width
