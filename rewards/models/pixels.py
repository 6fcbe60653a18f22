"""Images → pixels for the CLIP family: resized to a square, normalised with CLIP's mean and deviation."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch.nn import functional as F

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def center_cropped(images: Sequence[Image.Image], size: int) -> torch.Tensor:
    """(B, 3, size, size): the shorter side resized to `size` (bicubic, 8 bits), the middle of the longer one kept."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import center_crop, resize, to_tensor

    resized = [resize(image.convert("RGB"), size, InterpolationMode.BICUBIC) for image in images]
    return normalized(torch.stack([to_tensor(center_crop(image, size)) for image in resized]))


def padded(images: Sequence[Image.Image], size: int) -> torch.Tensor:
    """(B, 3, size, size): the longer side resized to `size` (bicubic, in floating point), the shorter one padded with
    black on both sides."""
    from torchvision.transforms.functional import to_tensor

    squares = []
    for image in images:
        pixels_CHW = to_tensor(image.convert("RGB"))
        scale = size / max(pixels_CHW.shape[1:])
        height, width = (max(round(side * scale), 1) for side in pixels_CHW.shape[1:])
        if scale != 1:
            pixels_CHW = F.interpolate(pixels_CHW[None], (height, width), mode="bicubic", antialias=True)[0]
        top, left = (size - height) // 2, (size - width) // 2
        squares.append(F.pad(pixels_CHW, (left, size - width - left, top, size - height - top)))
    return normalized(torch.stack(squares))


def normalized(pixels_BCHW: torch.Tensor) -> torch.Tensor:
    """Pixels from 0 to 1 → minus CLIP's mean, over its deviation."""
    return (pixels_BCHW - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
