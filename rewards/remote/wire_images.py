"""Images on the wire: PNG or JPEG bytes, decoded only after the header has shown that they are small enough."""

import io
import zlib
from dataclasses import dataclass

from PIL import Image

from uniar.errors import UserError
from uniar.reading.pictures import PictureTooLarge, in_rgb, open_picture

# 16-bit and float images are left out: scaling them takes several times their memory.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
BYTES_PER_PIXEL = 4
"""of an RGB image in Pillow"""
SCORING_BYTES_PER_PIXEL = 48
"""of the image being scored: its pixels as float32 or float64, and some steps of arithmetic on them"""
_SCAN = b"\xff\xda"  # the marker before each scan of a JPEG; its compressed data cannot contain it


class BadRequest(Exception):
    """What a client sent cannot be scored. `status` is the HTTP status, the message one sentence for the client."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What a server takes in one request, and of all together."""

    body_bytes: int = 64 * 2**20
    head_seconds: float = 10.0
    """for the head of a request to arrive in, and the beginning of its body"""
    body_seconds: float = 60.0
    """for a body to arrive in"""
    body_rate: int = 10_000
    """bytes per second that a body has to come with, from its beginning"""
    samples: int = 64
    image_pixels: int = 2**24
    request_pixels: int = 2**26
    """of all its images together"""
    aspect_ratio: int = 20
    """longer over shorter side: a reward that resizes the shorter one would need any amount of memory"""
    jpeg_scans: int = 64
    """each costs a pass over the whole image, but only some bytes of the file"""
    prompt_characters: int = 2**15
    metadata_characters: int = 2**16
    """of each sample's metadata, as JSON"""
    json_values: int = 2**17
    """a million empty lists are two bytes each in a body and fifty times that in memory"""
    bits: int = 2**24
    """of one sample"""
    wait_seconds: float = 10.0
    """for room among `resident_bytes`; then a client is told to come back"""
    resident_bytes: int = 2**30
    """that requests take at a time, beside the rewards' weights: what has come of their bodies, with the copies made
    when they are unpacked, pictures as Pillow holds them, and what scoring the largest takes for a moment; beyond it,
    clients are told to wait"""
    connections: int = 2048
    """at a time, or as many as the process may open files, less some that it needs itself"""
    unproven_connections: int = 256
    """of those, the ones from which no request has come yet that was allowed and read"""


def decoding_bytes(image: Image.Image) -> int:
    """That decoding an opened image takes for a moment, beside its pixels: Pillow's copies on the way to RGB, and
    a progressive JPEG's coefficients."""
    per_pixel = (8 if image.mode == "RGB" else 20) + 6 * (image.format != "PNG")
    return per_pixel * image.width * image.height


def encode_image(image: Image.Image) -> bytes:
    """Lossless PNG of the image in RGB, packed fast rather than small."""
    buffer = io.BytesIO()
    # After PNG's own filters, looking for runs alone is faster than looking for any repetition, and packs as well.
    in_rgb(image).save(buffer, format="PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def open_image(data: bytes, where: str, limits: Limits) -> Image.Image:
    """The image with its header read and its size checked, not decoded yet. Raises BadRequest."""
    try:
        image = open_picture(data, where, ("PNG", "JPEG"), limits.image_pixels, limits.aspect_ratio)
    except UserError as error:
        raise BadRequest(str(error), 413 if isinstance(error, PictureTooLarge) else 400) from error
    if image.mode not in _MODES:
        raise BadRequest(f"{where} is of Pillow's mode {image.mode!r}; 8 bits per channel are needed.")
    if image.format != "PNG" and data.count(_SCAN) > limits.jpeg_scans:
        raise BadRequest(f"{where} is a JPEG of more than {limits.jpeg_scans} scans.")
    return image


def decode_image(image: Image.Image, where: str) -> Image.Image:
    """The opened image as RGB pixels. Raises BadRequest where its data is truncated or broken."""
    try:
        return in_rgb(image, where)
    except UserError as error:
        raise BadRequest(str(error)) from error
