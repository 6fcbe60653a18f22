"""The loader of pictures: what the pixels are, whatever the file, and what is refused in which words."""

import contextlib
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from uniar.errors import UserError
from uniar.reading.pictures import MOST_PIXELS, check_picture, in_rgb, load_picture, picture_to_edit

RAMP = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
GREYS = np.rint(RAMP / 257).astype(np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def pixel(path: Path) -> tuple[int, ...]:
    return load_picture(path).getpixel((0, 0))


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# Pixels --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled(tmp_path, suffix):
    path = saved(tmp_path / f"grey.{suffix}", Image.fromarray(RAMP))
    assert Image.open(path).mode == "I;16"
    check_picture(path)
    assert np.array_equal(np.asarray(load_picture(path))[..., 1], GREYS)


@pytest.mark.parametrize(
    ("values", "tags"),
    [
        ((RAMP / 65535).astype(np.float32), {}),
        (RAMP.astype(np.float32), {281: 65535}),
        (GREYS.astype(np.float32), {341: 255.0}),
        (RAMP.astype(np.int32), {281: 65535}),
        (GREYS.astype(np.int32), {281: 255}),
    ],
    ids=["float of 0 to 1", "float of 16 bits", "float of 8 bits", "int of 16 bits", "int of 8 bits"],
)
def test_integers_and_floats_are_scaled_by_what_is_declared(tmp_path, values, tags):
    path = tmp_path / "grey.tif"
    Image.fromarray(values).save(path, tiffinfo=tags)
    assert Image.open(path).mode in "IF"
    grey = np.asarray(load_picture(path))[..., 0].astype(int)
    assert np.abs(grey - GREYS).max() <= 1


@pytest.mark.parametrize(
    "values",
    [RAMP.astype(np.int32), GREYS.astype(np.int32), RAMP.astype(np.float32)],
    ids=["int of 16 bits", "int of 8 bits", "float of 16 bits"],
)
def test_a_white_that_nothing_declares_is_not_guessed(tmp_path, values):
    path = saved(tmp_path / "grey.tif", Image.fromarray(values))
    with pytest.raises(UserError, match=r"grey.tif' has .* up to \d+, and its file does not say which value is white"):
        load_picture(path)


@pytest.mark.parametrize("value", [0, 200, 255, 256, 20000, 65535])
def test_a_pgm_of_16_bits_is_scaled_whatever_it_holds(tmp_path, value):
    for most, levels in ((65535, value), (1000, value % 1001)):
        (tmp_path / "even.pgm").write_bytes(b"P5 2 2 %d\n" % most + np.full(4, levels, ">u2").tobytes())
        assert abs(pixel(tmp_path / "even.pgm")[0] - 255 * levels / most) <= 0.51


@pytest.mark.parametrize(
    ("color", "samples", "key"), [(0, [[300], [60000]], [300]), (2, [[300, 0, 0], [60000, 0, 0]], [300, 0, 0])]
)
def test_transparent_values_of_16_bits_lie_on_white(tmp_path, color, samples, key):
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", len(samples), 1, 16, color, 0, 0, 0)
    rows = zlib.compress(b"\0" + np.array(samples, ">u2").tobytes())
    parts = {b"IHDR": header, b"tRNS": np.array(key, ">u2").tobytes(), b"IDAT": rows, b"IEND": b""}
    path = tmp_path / "key.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts.items()))
    clear, opaque = np.asarray(load_picture(path))[0]
    assert clear.tolist() == [255, 255, 255]
    assert opaque[0] in (233, 234)


def test_a_pgm_of_16_bits(tmp_path):
    (tmp_path / "grey.pgm").write_bytes(b"P5 8 8 65535\n" + RAMP.astype(">u2").tobytes())
    assert np.array_equal(np.asarray(load_picture(tmp_path / "grey.pgm"))[..., 0], GREYS)


def test_transparent_parts_lie_on_white(tmp_path):
    clear = saved(tmp_path / "rgba.png", Image.new("RGBA", (4, 4), (0, 0, 0, 0)))
    half = saved(tmp_path / "la.png", Image.new("LA", (4, 4), (0, 128)))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30, 200, 0, 0])
    by_index = saved(tmp_path / "index.png", palette, transparency=0)
    by_bytes = saved(tmp_path / "bytes.png", palette, transparency=bytes([0, 255]))
    as_gif = saved(tmp_path / "p.gif", palette, transparency=0)
    keyed = saved(tmp_path / "key.png", Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3))
    webp = saved(tmp_path / "a.webp", Image.new("RGBA", (4, 4), (0, 0, 0, 0)), lossless=True)
    for path in (clear, by_index, by_bytes, as_gif, keyed, webp):
        assert pixel(path) == (255, 255, 255), path
    assert pixel(half) == (127, 127, 127)


def test_pictures_stand_as_their_exif_data_say(tmp_path):
    photo = Image.new("RGB", (40, 20), "red")
    photo.paste("blue", (0, 0, 20, 20))
    for suffix in ("jpg", "png", "webp", "tif"):
        path = saved(tmp_path / f"photo.{suffix}", photo, exif=turned(6))
        upright = load_picture(path)
        assert upright.size == (20, 40), suffix
        assert upright.getpixel((10, 5))[2] > 200 > upright.getpixel((10, 35))[2], suffix
    assert load_picture(saved(tmp_path / "three.jpg", photo, exif=turned(3))).getpixel((5, 5))[0] > 200
    nonsense = load_picture(saved(tmp_path / "nonsense.jpg", photo, exif=turned(99)))
    assert nonsense.size == (40, 20)


BROKEN_EXIF = [
    b"",
    b"Exif",
    b"II*\0",
    b"MM\0*\xff\xff\xff\xff",
    b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
    b"\0" * 64,
    b"<x/>" * 99,
]
BROKEN_EXIF += [
    b"II*\0\x08\0\0\0\x01\0\x12\x01" + kind + b"\xff\xff\xff\x7f\x06\0\0\0" for kind in (b"\x02\0", b"\x0c\0")
]


@pytest.mark.parametrize("exif", BROKEN_EXIF)
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_broken_exif_data_say_nothing(tmp_path, exif, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (8, 4), "blue").save(path, exif=exif)
    check_picture(path)
    assert load_picture(path).size == (8, 4)
    assert load_picture(path).getpixel((0, 0))[2] > 200


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
def test_every_orientation_is_pillows(tmp_path, orientation, suffix):
    picture = Image.fromarray(np.arange(8 * 16 * 3, dtype=np.uint8).reshape(8, 16, 3))
    path = saved(tmp_path / f"a.{suffix}", picture, exif=turned(orientation))
    with Image.open(path) as stored:
        assert load_picture(path).tobytes() == ImageOps.exif_transpose(stored).convert("RGB").tobytes()


def test_other_modes_and_the_first_frame(tmp_path):
    assert pixel(saved(tmp_path / "cmyk.jpg", Image.new("CMYK", (16, 16), (0, 255, 255, 0)), quality=100))[0] > 240
    assert pixel(saved(tmp_path / "one.png", Image.new("1", (4, 4), 1))) == (255, 255, 255)
    assert pixel(saved(tmp_path / "grey.bmp", Image.new("L", (4, 4), 77))) == (77, 77, 77)
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    for suffix in ("gif", "png", "webp", "tif"):
        moving = saved(tmp_path / f"moving.{suffix}", frames[0], save_all=True, append_images=frames[1:])
        assert pixel(moving)[0] > 240, suffix


def test_a_picture_may_be_the_content_of_its_file(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(NOISE))
    assert load_picture(path.read_bytes()) == load_picture(path)
    check_picture(path.read_bytes(), "row 3")
    with pytest.raises(UserError, match=r"^row 3 cannot be read: .*truncated"):
        check_picture(path.read_bytes()[:900], "row 3")


def test_pictures_in_memory_follow_the_same_rules():
    assert in_rgb(Image.new("RGBA", (2, 2), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert np.array_equal(np.asarray(in_rgb(Image.fromarray(RAMP)))[..., 0], GREYS)
    with pytest.raises(UserError, match="the image has 5 × 2000 pixels; one side may be 200 times the other at most"):
        in_rgb(Image.new("RGB", (5, 2000)))


# Refusals ------------------------------------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")


def content(format: str, **options) -> bytes:
    Image.fromarray(NOISE).save(buffer := io.BytesIO(), format, **options)
    return buffer.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(pwned) print\n"
BAD_FILES = {
    "text": (b"not a picture", "is not a whole picture in a format that is read (PNG, JPEG, WEBP"),
    "empty": (b"", "is not a whole picture in a format that is read"),
    "eps": (EPS, "is not a whole picture in a format that is read"),
    "pdf": (b"%PDF-1.4\n1 0 obj\n", "is not a whole picture in a format that is read"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "is not a whole picture in a format that is read"),
    "bomb": (png_header(2**16, 2**16), f"has far more than the {MOST_PIXELS} pixels that are read"),
    "large": (png_header(10_000, 9_000), f"has 10000 × 9000 pixels; at most {MOST_PIXELS} pixels are read"),
    "thin": (png_header(5, 2000), "has 5 × 2000 pixels; one side may be 200 times the other"),
    "wide": (png_header(40_000, 100), "has 40000 × 100 pixels; one side may be 200 times the other"),
    "png cut": (content("PNG")[:-200], "cannot be read: "),
    "jpeg cut": (content("JPEG")[:-200], "cannot be read: "),
    "webp cut": (content("WEBP")[:-200], "cannot be read: "),
    "gif cut": (content("GIF")[:-200], "cannot be read: "),
    "tiff cut": (content("TIFF")[:-200], "cannot be read: "),
    "bmp cut": (content("BMP")[:-200], "cannot be read: "),
    "png of a header": (content("PNG")[:30], "is not a whole picture in a format"),
}


@pytest.mark.parametrize(("data", "words"), BAD_FILES.values(), ids=BAD_FILES)
@pytest.mark.parametrize("read", [load_picture, check_picture])
def test_files_that_are_refused(tmp_path, read, data, words):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(UserError) as error:
        read(tmp_path / "a.png")
    assert str(error.value).startswith(f"the image '{tmp_path / 'a.png'}' {words}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("read", [load_picture, check_picture])
def test_what_is_not_a_file(tmp_path, read):
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    inline = "data:image/png;base64," + "iVBORw0KGgo" * 300
    refused = {
        tmp_path / "fifo.png": "is not a file.",
        tmp_path / "folder.png": "is not a file.",
        tmp_path / "loop.png": "cannot be read: Too many levels of symbolic links.",
        tmp_path / "none.png": "does not exist.",
        tmp_path / ("long" * 100): "cannot be read: File name too long.",
        "/dev/zero": "is not a file.",
        "nul\0.png": "has a NUL in its path.",
        inline: "the image 'data:image/png;base64,iVBORw0KGgoiVBORw0KGgoiVBORw0KGgoiVBO…' is an address",
        Path(inline): "is an address",
        "https://example.org/cat.png": "the image 'https://example.org/cat.png' is an address",
        Path("HTTP://example.org/cat.png"): "is an address",
        "file:///tmp/cat.png": "is an address",
        "": "the image '' has an empty path.",
    }
    for source, words in refused.items():
        with pytest.raises(UserError) as error:
            read(source)
        assert words in str(error.value)
        assert len(str(error.value)) < 600


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF", "TIFF", "JPEG", "BMP", "PPM", "JPEG2000", "AVIF"])
def test_a_damaged_file_gives_a_picture_or_a_sentence(format):
    whole = content(format)
    for seed in range(12):
        broken = bytearray(whole)
        for place in np.random.default_rng(seed).integers(12, len(whole), 20):
            broken[place] ^= 0x5A
        with contextlib.suppress(UserError):
            assert load_picture(bytes(broken), "it").mode == "RGB"


def test_nothing_else_opens_pictures_of_others():
    """Elsewhere Pillow reads what this project wrote itself, as PNG, or stands in for torchvision's own decoder."""
    root = Path(__file__).parents[2]
    files = [file for room in ("uniar", "rewards", "rl") for file in (root / room).rglob("*.py")]
    opening = {file.relative_to(root).as_posix(): file.read_text(encoding="utf-8") for file in files}
    opening = {name: code for name, code in opening.items() if "Image.open(" in code}
    allowed = {
        "uniar/reading/pictures.py",
        "uniar/drawn_files.py",
        "uniar/torchvision_compat.py",
    }
    assert set(opening) <= allowed
    assert all(
        code.count("Image.open(") == code.count('formats=("PNG",)')
        for name, code in opening.items()
        if name == "uniar/drawn_files.py"
    )


def test_an_edit_and_a_training_prompt_see_the_same_pixels(tmp_path):
    from rl.data.prompts import PromptRecord

    picture = Image.fromarray(np.dstack([NOISE, NOISE[..., 0]]))
    path = saved(tmp_path / "a.png", picture, exif=turned(8))
    for source in (str(path), path):
        record = PromptRecord("make it blue", image=str(source))
        assert record.image_to_edit(64, 96) == picture_to_edit(path, 64, 96)
        assert record.load_image() == load_picture(path)


def test_a_folder_is_called_what_it_is(tmp_path):
    with pytest.raises(UserError) as refusal:
        load_picture(tmp_path)
    assert str(refusal.value) == f"the image '{tmp_path}' is not a file."
