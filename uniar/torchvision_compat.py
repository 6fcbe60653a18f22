"""Lets the package index's torchvision be used beside a CPU-only torch.

That torchvision is built against CUDA torch. Beside a CPU-only torch its compiled libraries cannot load, and
`import torchvision` stops at "operator torchvision::nms does not exist", taking transformers' processors, TRL, peft,
diffusers and open_clip with it. Declaring the schemas of the two operators that torchvision's Python code refers to is
enough for the import; calling one still raises, because there is no kernel behind it. Pictures are decoded by Pillow.

This happens when torchvision is imported, after torchvision has tried its own libraries. A torch with CUDA, and a
torchvision whose own libraries load, are left alone. pyproject.toml names `ensure_torchvision_imports` among the
entry points that torch calls when it is imported itself, so it also holds where transformers comes before uniar.
"""

import sys
from types import ModuleType
from typing import Any

from uniar.import_hooks import on_import

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP")
"""What torchvision itself decodes."""
_kept: list[Any] = []  # keeps the declared schemas alive for the life of the process


def ensure_torchvision_imports() -> None:
    """From now on `import torchvision` works. Imports nothing itself; a second call does nothing.

    An installed environment calls this by name when torch is imported, so the name cannot change.
    """
    if "torchvision" not in sys.modules:
        # An import that failed before leaves torchvision's submodules behind, half initialised.
        for name in [name for name in sys.modules if name.startswith("torchvision.")]:
            del sys.modules[name]
    on_import("torchvision.extension", after=_declare_operators)
    on_import("torchvision.io.image", after=_decode_by_pillow)


def _declare_operators(extension: ModuleType) -> None:
    import torch

    if torch.version.cuda is None and not extension._has_ops() and not _kept:
        _kept.append(library := torch.library.Library("torchvision", "DEF"))
        for schema in _SCHEMAS:
            library.define(schema)


def _decode_by_pillow(module: ModuleType) -> None:
    """Puts a `decode_image` of the same arguments and results into torchvision.io.image, if it has no library."""
    import torch

    if torch.version.cuda is not None or module._has_image_ops():
        return
    modes = module.ImageReadMode
    pillow_modes = {modes.GRAY: "L", modes.GRAY_ALPHA: "LA", modes.RGB: "RGB", modes.RGB_ALPHA: "RGBA"}

    def decode_image(input: Any, mode: Any = modes.UNCHANGED, apply_exif_orientation: bool = False) -> torch.Tensor:
        """A file's path, or its bytes as a uint8 tensor → uint8 (channels, height, width)."""
        import io

        import numpy as np
        from PIL import Image, ImageOps

        source = io.BytesIO(input.numpy().tobytes()) if isinstance(input, torch.Tensor) else input
        mode = modes[mode.upper()] if isinstance(mode, str) else mode
        with Image.open(source, formats=_FORMATS) as image:
            upright = ImageOps.exif_transpose(image) if apply_exif_orientation else image
            own = {"1": "L", "P": "RGB"}.get(image.mode, image.mode)
            pixels = np.array(upright.convert(pillow_modes.get(mode, own)))
        return torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1).contiguous()

    module.decode_image = decode_image  # type: ignore[attr-defined]  # in the place of its own
