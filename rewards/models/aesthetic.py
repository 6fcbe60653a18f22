"""`aesthetic`: how well an image would be rated, whatever the prompt (LAION's aesthetic predictor v2)."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import nn

from rewards.contract.base import RewardBatch
from rewards.models.linear_head import LinearHead
from rewards.models.model_reward import ModelReward, Precision, numbers_only
from rewards.models.open_clip_model import OpenClip
from rewards.models.weights import check_weights, find_file, read_weights


class Aesthetic(ModelReward):
    """A linear head on the image feature of CLIP ViT-L/14, scaled to length 1.

    Args:
        weights: hub id, or a local file of the head: names `layers.N.weight` (v2) or `scoring_head.N.weight` (v2.5).
        file: the file's name on the hub or in a local folder.
        model: the open_clip architecture that makes the features (or "hf-hub:…", "local-dir:…", as in clip_score).
        model_weights: its open_clip tag or local file; null where it brings its own.
        model_weights_like: for a local file, the tag it equals in image preprocessing and activation, as in clip_score.
        batch_size: images scored at a time.
        device: where it runs; null follows the trainer (a GPU if there is one).
        dtype: of weights and activations; the head is always float32.

    Raises UserError for weights that are missing or do not fit together, when they are loaded.
    """

    usual_range = (1.0, 10.0)

    def __init__(
        self,
        weights: str = "trl-lib/ddpo-aesthetic-predictor",
        file: str = "aesthetic-model.pth",
        model: str = "ViT-L-14",
        model_weights: str | None = "openai",
        model_weights_like: str | None = None,
        batch_size: int = 32,
        device: str | None = None,
        dtype: Precision = "float32",
    ):
        super().__init__(batch_size, device, dtype)
        self.weights, self.file = weights, file
        self.source = OpenClip(model, model_weights, model_weights_like)

    def build(self) -> nn.Module:
        path = find_file(self.weights, self.file)
        found = read_weights(path)
        clip = self.source.build()
        self._preprocess = self.source.preprocess(clip)
        size = clip.visual.image_size
        with torch.inference_mode():
            features = clip.visual(torch.zeros(1, 3, *size)).shape[-1]
        head = LinearHead(features)
        name_in_file = _v25_name if any(name.startswith("scoring_head.") for name in found) else str
        check_weights(path, found, head, f"an aesthetic head on {self.source.name!r}", name_in_file)
        head.load_state_dict({name: found[name_in_file(name)] for name in head.state_dict()})
        return nn.ModuleDict({"visual": clip.visual, "head": head})

    def load(self) -> None:
        super().load()
        self._model["head"].float()

    def score(self, batch: RewardBatch) -> torch.Tensor:
        """(B,) float32 on the CPU."""
        self.load()
        return numbers_only(self.encoded(batch.images, self._rate))

    def _rate(self, images: Sequence[Image.Image]) -> torch.Tensor:
        pixels_BCHW = torch.stack([self._preprocess(image) for image in images]).to(self._device, self.dtype)
        features_BD = self._model["visual"](pixels_BCHW).float()
        return self._model["head"](nn.functional.normalize(features_BD, dim=-1))


def _v25_name(name: str) -> str:
    """A weight of the head, as the files of v2.5 call it: a dropout more stands before their last layer."""
    return name.replace("layers.7.", "layers.8.").replace("layers.", "scoring_head.")
