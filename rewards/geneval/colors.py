"""What colour an object is: CLIP asked about its crop, as GenEval (arXiv:2310.11513) asks."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from rewards.geneval.request import COLORS
from rewards.models.open_clip_model import OpenClip

BACKGROUND = (0x99, 0x99, 0x99)
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")


class ColorClassifier(torch.nn.Module):
    """Zero-shot: for each of COLORS the mean of the normalised features of TEMPLATES; the colour whose mean has the
    greatest cosine with the crop is the object's. Raises UserError, as `OpenClip.build` does."""

    def __init__(self, clip: OpenClip):
        super().__init__()
        self.model = clip.build()
        self._preprocess, self._tokenize = clip.preprocess(self.model), clip.tokenizer()
        self._features: dict[str, torch.Tensor] = {}

    @torch.inference_mode()
    def forward(self, crops: Sequence[Image.Image], names: Sequence[str]) -> list[str]:
        """For each crop, of an object of the class `names` says, one of COLORS."""
        like = next(self.model.parameters())
        pixels_BCHW = torch.stack([self._preprocess(crop) for crop in crops]).to(like.device, like.dtype)
        images_BD = self.model.encode_image(pixels_BCHW, normalize=False).float()
        colors = []
        for image_D, name in zip(images_BD, names, strict=True):
            # Neither CLIP's scale nor the length of the image's feature changes which is the greatest.
            colors.append(COLORS[int((self._color_features(name).to(image_D.device) @ image_D).argmax())])
        return colors

    def _color_features(self, name: str) -> torch.Tensor:
        """(10, D) float32, normalised; computed once for each class."""
        if name not in self._features:
            prompts = [template.format(color=color, name=name) for color in COLORS for template in TEMPLATES]
            device = next(self.model.parameters()).device
            texts_PD = self.model.encode_text(self._tokenize(prompts).to(device), normalize=False).float()
            texts_PD = torch.nn.functional.normalize(texts_PD, dim=-1)
            means_CD = texts_PD.reshape(len(COLORS), len(TEMPLATES), -1).mean(dim=1)
            self._features[name] = torch.nn.functional.normalize(means_CD, dim=-1).cpu()
        return self._features[name]


def cropped(image: Image.Image, box: tuple[int, int, int, int], mask: np.ndarray) -> Image.Image:
    """The part of an image in a box, grey where `mask` (H, W) is not set."""
    pixels = np.where(mask[:, :, None], np.asarray(image.convert("RGB")), np.array(BACKGROUND, dtype=np.uint8))
    return Image.fromarray(pixels).crop(box)
