"""Objects in images, by transformers' Mask2Former with mmdet's image sizes and instance post-processing.

transformers' own post-processing resizes to 384 × 384 and removes overlaps, which changes counts and boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from uniar.errors import UserError
from uniar.reading.files import reason_of, user_path

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of 0 to 255, RGB
TOP = 100  # pairs of query and class that count per image
DIVISOR = 32  # the backbone's coarsest stride: sides are padded to a multiple of it


@dataclass(frozen=True)
class Instance:
    """An object that was found: its class index `label`, `score` from 0 to 1, `box` (left, top, right, bottom) in
    pixels of the image, right and bottom exclusive, and `mask` (H, W) bool."""

    label: int
    score: float
    box: tuple[int, int, int, int]
    mask: np.ndarray


class Detector(torch.nn.Module):
    """A Mask2Former instance segmenter.

    Args:
        weights: a hub id or a local folder, as transformers saves one.
        names: its classes in order.
        short_side, long_side: images are scaled, their ratio kept, as large as fits both.

    Raises UserError for weights that are missing, of another model or of other classes.
    """

    def __init__(self, weights: str, names: Sequence[str], short_side: int = 800, long_side: int = 1333):
        super().__init__()
        self.model = load_mask2former(weights, names)
        self.short_side, self.long_side = short_side, long_side

    @torch.inference_mode()
    def forward(self, images: Sequence[Image.Image], min_score: float) -> list[list[Instance]]:
        """For each of the images, which are of one size, the instances with a score above `min_score`, in no particular
        order."""
        width, height = images[0].size
        resized = resized_size(width, height, self.short_side, self.long_side)
        pixels_BCHW = prepare_pixels(images, resized).to(self.model.device, self.model.dtype)
        output = self.model(pixel_values=pixels_BCHW)
        sizes = {"padded": tuple(pixels_BCHW.shape[2:]), "resized": resized[::-1], "original": (height, width)}
        logits = zip(output.class_queries_logits, output.masks_queries_logits, strict=True)
        return [instances(*pair, **sizes, min_score=min_score) for pair in logits]


def resized_size(width: int, height: int, short_side: int, long_side: int) -> tuple[int, int]:
    """(width, height) after scaling to the largest size whose sides fit `short_side` and `long_side`, to the nearest
    pixel."""
    scale = min(long_side / max(width, height), short_side / min(width, height))
    return int(width * scale + 0.5), int(height * scale + 0.5)


def prepare_pixels(images: Sequence[Image.Image], size: tuple[int, int]) -> torch.Tensor:
    """(B, 3, H, W) float32: images of one size scaled to `size` (width, height), normalised, padded with 0 at the
    right and the bottom to multiples of DIVISOR."""
    width, height = size
    pixels = torch.stack([torch.from_numpy(np.array(image.convert("RGB"))) for image in images]).permute(0, 3, 1, 2)
    # Without anti-aliasing and rounded, as the 8-bit bilinear resize that the weights were evaluated with.
    pixels = F.interpolate(pixels.float(), size=(height, width), mode="bilinear", align_corners=False).round()
    pixels = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return F.pad(pixels, (0, -width % DIVISOR, 0, -height % DIVISOR))


def instances(
    class_logits_QC: torch.Tensor,
    mask_logits_Qhw: torch.Tensor,
    padded: tuple[int, int],
    resized: tuple[int, int],
    original: tuple[int, int],
    min_score: float,
) -> list[Instance]:
    """mmdet's instance post-processing of one image.

    A softmax over the classes and "no object"; of all pairs of query and class the TOP most probable; each scored by
    its probability times the mean of the mask's probability inside the mask. A query may count for several classes,
    and masks may overlap.

    Args:
        class_logits_QC: of Q queries; the last of the C columns is "no object".
        mask_logits_Qhw: at the model's own resolution.
        padded, resized, original: (height, width) of what the model saw, of the image in it, of the image itself.
        min_score: what is not surer is left out.
    """
    probabilities = class_logits_QC.float().softmax(dim=-1)[:, :-1]
    classes = probabilities.shape[1]
    probabilities, pairs = probabilities.flatten().topk(min(TOP, probabilities.numel()))
    # The mean inside a mask is at most 1: a pair that is not probable enough never gets there, and needs no mask.
    pairs, probabilities = pairs[probabilities > min_score], probabilities[probabilities > min_score]
    if len(pairs) == 0:
        return []
    queries, which = (pairs // classes).unique(return_inverse=True)
    logits = mask_logits_Qhw[queries].float()[:, None]
    logits = F.interpolate(logits, size=padded, mode="bilinear", align_corners=False)
    logits = logits[:, :, : resized[0], : resized[1]]
    logits = F.interpolate(logits, size=original, mode="bilinear", align_corners=False)[:, 0]
    masks = logits > 0
    areas = masks.sum(dim=(1, 2))
    inside = (logits.sigmoid() * masks).sum(dim=(1, 2)) / (areas + 1e-6)
    scores, labels = (probabilities * inside[which]).tolist(), (pairs % classes).tolist()
    masks = masks.cpu().numpy()
    boxes = [mask_box(mask) for mask in masks]
    return [
        Instance(label, score, boxes[query], masks[query])
        for label, score, query in zip(labels, scores, which.tolist(), strict=True)
        if score > min_score
    ]


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of what is set in a mask (H, W), right and bottom exclusive; zeros if nothing is."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if len(columns) == 0:
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def load_mask2former(weights: str, names: Sequence[str]) -> torch.nn.Module:
    """transformers' model, float32 on the CPU. Raises UserError, as `Detector` says."""
    from transformers import AutoConfig, Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    from uniar.checkpoint import require_exact_tensors

    local = user_path(weights)
    if not local.is_dir() and (local.is_absolute() or weights.startswith((".", "~")) or weights.count("/") != 1):
        raise UserError(f"detector {weights!r} is neither a folder nor a hub id such as owner/name.")
    source = str(local) if local.is_dir() else weights
    try:
        config = AutoConfig.from_pretrained(source)
        if not isinstance(config, Mask2FormerConfig):
            raise UserError(f"detector {weights} is a {config.model_type!r} model, a 'mask2former' is needed.")
        _check_names(weights, config.id2label, names)
        model, found = Mask2FormerForUniversalSegmentation.from_pretrained(
            source, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except UserError:
        raise
    except Exception as error:  # a hub, a file format and a config reader each have errors of their own
        hint = "" if local.is_dir() else " Without a network, name a local folder."
        raise UserError(f"detector {weights!r} cannot be loaded: {reason_of(error)}.{hint}") from error
    require_exact_tensors(weights, model, found, whole=False)
    return model


def _check_names(weights: str, labels: dict[int, str], names: Sequence[str]) -> None:
    if len(labels) != len(names):
        raise UserError(
            f"detector {weights} has {len(labels)} classes; the {len(names)} of COCO's instances are needed."
        )
    for index, label in labels.items():  # other spellings ("sofa") are let pass, another order is not
        if label in names and names.index(label) != int(index):
            raise UserError(
                f"detector {weights} has its classes in another order than COCO: {label!r} is number {index}, "
                f"{names.index(label)} is needed."
            )
