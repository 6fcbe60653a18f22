"""`hpsv2`: human preference for an image given its prompt (Wu et al. 2023, arXiv:2306.09341), version 2.1."""

from collections.abc import Sequence

import torch
from PIL import Image

from rewards.contract.base import RewardBatch
from rewards.models.model_reward import ModelReward, Precision, cosines, numbers_only
from rewards.models.open_clip_model import OpenClip
from rewards.models.pixels import padded
from rewards.models.weights import find_file


class HPSv2(ModelReward):
    """cos(image, prompt) under the published CLIP-H, without a scale. Images that are not square are padded with black.
    Prompts are cut at 77 tokens.

    Args:
        weights: hub id, or a local file as published: a mapping whose `state_dict` has open_clip's names. Version 2.0
            has the same form.
        file: the file's name on the hub or in a local folder.
        model: the open_clip architecture of the file.
        batch_size: images encoded at a time.
        device: where it runs; null follows the trainer (a GPU if there is one).
        dtype: of weights and activations.

    Raises UserError for weights that are missing or of another model, when they are loaded.
    """

    usual_range = (0.2, 0.35)

    def __init__(
        self,
        weights: str = "xswu/HPSv2",
        file: str = "HPS_v2.1_compressed.pt",
        model: str = "ViT-H-14",
        batch_size: int = 32,
        device: str | None = None,
        dtype: Precision = "float32",
    ):
        super().__init__(batch_size, device, dtype)
        self.weights, self.file, self.architecture = weights, file, model

    def build(self) -> torch.nn.Module:
        source = OpenClip(self.architecture, str(find_file(self.weights, self.file)))
        model = source.build(look={})
        self._tokenize, self._size = source.tokenizer(), model.visual.image_size[0]
        return model

    def score(self, batch: RewardBatch) -> torch.Tensor:
        """(B,) float32 on the CPU."""
        self.load()
        texts_BD = self.encoded_once(batch.prompts, self._encode_texts)
        return numbers_only(cosines(self.encoded(batch.images, self._encode_images), texts_BD))

    def _encode_texts(self, prompts: Sequence[str]) -> torch.Tensor:
        return self._model.encode_text(self._tokenize(list(prompts)).to(self._device))

    def _encode_images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        return self._model.encode_image(padded(images, self._size).to(self._device, self.dtype))
