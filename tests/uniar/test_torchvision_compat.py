"""What is done about a torchvision that cannot load its libraries, and to any other nothing."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from support.fresh_process import run_fresh

without_cuda = pytest.mark.skipif(torch.version.cuda is not None, reason="a torch with CUDA is left alone")

# A stand-in with the parts of the index's torchvision that matter here, in its order of imports.
EXTENSION = "print('extension')\ndef _has_ops(): return {works}\ndef _load_library(name): return {works}\n"
IMAGE = """
from enum import Enum
class ImageReadMode(Enum):
    UNCHANGED, GRAY, GRAY_ALPHA, RGB, RGB_ALPHA = range(5)
def _has_image_ops(): return {works}
def decode_image(*arguments): raise RuntimeError("Couldn't load the image extension.")
"""
META = """
import torch
try:
    torch.ops.torchvision.nms
except AttributeError:
    raise RuntimeError("operator torchvision::nms does not exist")
"""
WHOLE = "import torch\nfrom . import extension\nfrom torchvision import _meta_registrations, io\n"


def stub(folder: Path, works: bool, meta: str = META) -> Path:
    package = folder / "stub" / "torchvision"
    (package / "io").mkdir(parents=True)
    (package / "__init__.py").write_text(WHOLE)
    (package / "extension.py").write_text(EXTENSION.format(works=works))
    (package / "_meta_registrations.py").write_text(meta)
    (package / "io" / "__init__.py").write_text("from .image import ImageReadMode, decode_image\n")
    (package / "io" / "image.py").write_text(IMAGE.format(works=works))
    return folder / "stub"


@without_cuda
@pytest.mark.parametrize("first", ["import uniar", "import torch", ""], ids=["uniar", "torch", "torchvision"])
def test_missing_operators_are_declared(tmp_path, first):
    """Whichever is imported first; once."""
    done = run_fresh(
        f"""
{first}
import torchvision
import torch, uniar
assert torch.ops.torchvision.nms and torch.ops.torchvision.qnms
uniar.ensure_torchvision_imports()
import torchvision
try:
    torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except NotImplementedError:
    print("no kernel")
""",
        tmp_path,
        stub(tmp_path, works=False),
    )
    assert done.stdout.split() == ["extension", "no", "kernel"], done.stderr


@without_cuda
def test_an_import_that_failed_before_is_made_good(tmp_path):
    """As in a notebook, without the entry point: the first cell failed."""
    done = run_fresh(
        """
import os, sys
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
try:
    import torchvision
except RuntimeError as error:
    assert "operator torchvision::nms" in str(error)
    assert "torchvision.extension" in sys.modules
    import uniar
    import torchvision
    print(torchvision.io.decode_image.__module__)
""",
        tmp_path,
        stub(tmp_path, works=False),
    )
    assert done.stdout.split() == ["extension", "extension", "uniar.torchvision_compat"], done.stderr


def test_a_torchvision_that_works_is_left_alone(tmp_path):
    done = run_fresh(
        """
import torch, torchvision
try:
    torch.ops.torchvision.nms
except AttributeError:
    print(torchvision.io.decode_image.__module__)
""",
        tmp_path,
        stub(tmp_path, works=True, meta=""),
    )
    assert done.stdout.split() == ["extension", "torchvision.io.image"], done.stderr


def test_another_failure_is_not_hidden_and_cuda_is_left_alone(tmp_path):
    done = run_fresh(
        "import torch\ntorch.version.cuda = '13.0'\nimport torchvision",
        tmp_path,
        stub(tmp_path, works=False),
    )
    assert done.returncode == 1
    assert "operator torchvision::nms does not exist" in done.stderr
    other = stub(tmp_path / "other", works=False, meta="raise RuntimeError('disk on fire')")
    assert "disk on fire" in run_fresh("import uniar, torchvision", tmp_path, other).stderr


def test_no_torch_is_imported_for_it(tmp_path):
    done = run_fresh(
        "import sys, uniar, rl.cli; print(sorted({'torch', 'transformers', 'torchvision'} & {*sys.modules}))", tmp_path
    )
    assert done.stdout.strip() == "[]", done.stderr


@without_cuda
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "CMYK", "1"])
def test_pictures_are_decoded_as_transformers_decodes_them_without_torchvision(mode, tmp_path):
    """From a file and from bytes: upright, three channels. The stand-in is this environment's own torchvision."""
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.io.image import _has_image_ops

    if _has_image_ops():
        pytest.skip("torchvision has its own decoder here")
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 4), dtype=np.uint8)
    format = "JPEG" if mode == "CMYK" else "PNG"
    Image.fromarray(noise).convert(mode).save(tmp_path / "picture", format=format, exif=(turned := Image.Exif()))
    turned[0x0112] = 6  # a quarter turn
    Image.fromarray(noise).convert(mode).save(tmp_path / "turned", format=format, exif=turned)
    for name in ("picture", "turned"):
        expected = np.array(ImageOps.exif_transpose(Image.open(tmp_path / name)).convert("RGB"))
        found = decode_image(str(tmp_path / name), mode=ImageReadMode.RGB, apply_exif_orientation=True)
        assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)
        data = torch.frombuffer(bytearray((tmp_path / name).read_bytes()), dtype=torch.uint8)
        assert torch.equal(decode_image(data, "rgb", apply_exif_orientation=True), found)
    own = decode_image(str(tmp_path / "picture"))
    assert own.dtype == torch.uint8
    assert len(own) == {"RGB": 3, "L": 1, "RGBA": 4, "LA": 2, "P": 3, "CMYK": 4, "1": 1}[mode]


def test_a_file_that_is_no_picture_stays_an_error():
    from torchvision.io import decode_image

    with pytest.raises((OSError, RuntimeError)):
        decode_image(torch.frombuffer(bytearray(io.BytesIO(b"no picture").getvalue()), dtype=torch.uint8))
