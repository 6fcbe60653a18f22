"""`clip_score`: how well image and prompt agree, by any open_clip model.

CLIPScore (Hessel et al. 2021, arXiv:2104.08718) without its factor 2.5 and its cut at 0.
"""

from collections.abc import Sequence

import torch
from PIL import Image

from rewards.contract.base import RewardBatch
from rewards.models.model_reward import ModelReward, Precision, cosines, numbers_only
from rewards.models.open_clip_model import OpenClip


class ClipScore(ModelReward):
    """scale · cos(image, prompt), the cosine taken in float32. Prompts are cut at the model's context length.

    Args:
        model: an open_clip architecture ("ViT-L-14"), "hf-hub:owner/name", or "local-dir:path" (a folder with
            open_clip_config.json).
        weights: an open_clip tag ("openai", "laion2b_s32b_b82k") or a local weight file. null for "hf-hub:", which
            brings its own, and for the file that open_clip itself saves in a "local-dir:".
        weights_like: for a local file of a named architecture, the tag it equals in image preprocessing and activation.
            null takes what all tags of the architecture have in common, or, where they differ, open_clip's defaults,
            with a warning.
        scale: 1 for the cosine, 100 for CLIP's usual logits.
        batch_size: images encoded at a time.
        device: where it runs; null follows the trainer (a GPU if there is one).
        dtype: of weights and activations.

    Raises UserError for what does not exist or does not fit together; for weights when they are loaded.
    """

    usual_range = (0.15, 0.4)

    def __init__(
        self,
        model: str = "ViT-L-14",
        weights: str | None = "openai",
        weights_like: str | None = None,
        scale: float = 1.0,
        batch_size: int = 32,
        device: str | None = None,
        dtype: Precision = "float32",
    ):
        super().__init__(batch_size, device, dtype)
        self.source, self.scale = OpenClip(model, weights, weights_like), scale
        self.usual_range = tuple(scale * end for end in ClipScore.usual_range) if scale > 0 else None

    def build(self) -> torch.nn.Module:
        model = self.source.build()
        self._preprocess, self._tokenize = self.source.preprocess(model), self.source.tokenizer()
        return model

    def score(self, batch: RewardBatch) -> torch.Tensor:
        """(B,) float32 on the CPU."""
        self.load()
        texts_BD = self.encoded_once(batch.prompts, self._encode_texts)
        images_BD = self.encoded(batch.images, self._encode_images)
        return numbers_only(self.scale * cosines(images_BD, texts_BD))

    def _encode_texts(self, prompts: Sequence[str]) -> torch.Tensor:
        return self._model.encode_text(self._tokenize(list(prompts)).to(self._device), normalize=False)

    def _encode_images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        pixels_BCHW = torch.stack([self._preprocess(image) for image in images])
        return self._model.encode_image(pixels_BCHW.to(self._device, self.dtype), normalize=False)
