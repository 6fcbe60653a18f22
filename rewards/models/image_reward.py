"""`image_reward`: human preference for an image given its prompt (Xu et al. 2023, arXiv:2304.05977)."""

from collections.abc import Sequence

import torch
from PIL import Image

from rewards.contract.base import RewardBatch
from rewards.models.blip import LARGE, MED, BlipReward, published_name
from rewards.models.model_reward import ModelReward, Precision, numbers_only
from rewards.models.pixels import center_cropped
from rewards.models.weights import find_file, load_weights, read_weights

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the head's output over the authors' data; a score is so many deviations above the mean."""

MAX_TOKENS = 35
_UNUSED = ("blip.vision_proj.", "blip.text_proj.")  # heads of BLIP's pre-training that the published file still carries


class ImageReward(ModelReward):
    """(head(x) − mean) / deviation, with x BLIP's [CLS] state of the prompt, read against the image. Prompts are cut at
    35 tokens.

    Args:
        weights: hub id, a local folder with ImageReward.pt, or that file.
        vocabulary: hub id, a local folder with BERT's vocab.txt (uncased), or that file.
        batch_size: images scored at a time.
        device: where it runs; null follows the trainer (a GPU if there is one).
        dtype: of weights and activations; the head is always float32.

    Raises UserError for weights that are missing or of another model, when they are loaded.
    """

    usual_range = (-2.0, 2.0)
    vision, text = LARGE, MED

    def __init__(
        self,
        weights: str = "THUDM/ImageReward",
        vocabulary: str = "google-bert/bert-base-uncased",
        batch_size: int = 32,
        device: str | None = None,
        dtype: Precision = "float32",
    ):
        super().__init__(batch_size, device, dtype)
        self.weights, self.vocabulary = weights, vocabulary

    def build(self) -> torch.nn.Module:
        from tokenizers import BertWordPieceTokenizer

        path = find_file(self.weights, "ImageReward.pt")
        found = {
            name: value
            for name, value in read_weights(path).items()
            if not name.startswith(_UNUSED) and not name.endswith(".position_ids")
        }
        with torch.device("meta"):
            model = BlipReward(self.vision, self.text)
        load_weights(path, found, model, "ImageReward", published_name)
        self._tokenizer = BertWordPieceTokenizer(str(find_file(self.vocabulary, "vocab.txt")), lowercase=True)
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.enable_padding(length=MAX_TOKENS)
        return model

    def load(self) -> None:
        super().load()
        self._model.mlp.float()

    def score(self, batch: RewardBatch) -> torch.Tensor:
        """(B,) float32 on the CPU."""
        self.load()
        pairs = list(zip(batch.images, batch.prompts, strict=True))
        return numbers_only((self.encoded(pairs, self._raw) - MEAN) / STD)

    def _raw(self, pairs: Sequence[tuple[Image.Image, str]]) -> torch.Tensor:
        images, prompts = zip(*pairs, strict=True)
        pixels_BCHW = center_cropped(images, self.vision["image_size"]).to(self._device, self.dtype)
        encoded = self._tokenizer.encode_batch(list(prompts))
        ids_BP = torch.tensor([one.ids for one in encoded], device=self._device)
        mask_BP = torch.tensor([one.attention_mask for one in encoded], device=self._device)
        return self._model(pixels_BCHW, ids_BP, mask_BP)
