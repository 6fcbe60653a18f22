"""`pickscore`: which image people would pick for a prompt (Kirstain et al. 2023, arXiv:2305.01569)."""

from collections.abc import Sequence

import torch
from PIL import Image

from rewards.contract.base import RewardBatch
from rewards.models.model_reward import ModelReward, Precision, cosines, numbers_only
from rewards.models.pixels import center_cropped
from rewards.models.weights import find_file, load_weights, read_weights
from uniar.reading.files import user_path

PUBLISHED = {  # CLIP ViT-H/14; what is not named is as in every CLIP
    "projection_dim": 1024,
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
    },
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
        "hidden_act": "gelu",
    },
}


class PickScore(ModelReward):
    """exp(logit_scale) · cos(image, prompt) under the published CLIP-H. Prompts are cut at 77 tokens.

    Args:
        weights: hub id, or a local folder with config.json and model.safetensors (or pytorch_model.bin), as
            transformers' CLIPModel has them; or such a weight file alone, of the published sizes.
        batch_size: images encoded at a time.
        device: where it runs; null follows the trainer (a GPU if there is one).
        dtype: of weights and activations.

    Raises UserError for weights that are missing or of another model, when they are loaded.
    """

    usual_range = (17.0, 26.0)

    def __init__(
        self,
        weights: str = "yuvalkirstain/PickScore_v1",
        batch_size: int = 32,
        device: str | None = None,
        dtype: Precision = "float32",
    ):
        super().__init__(batch_size, device, dtype)
        self.weights = weights

    def build(self) -> torch.nn.Module:
        from open_clip.tokenizer import SimpleTokenizer
        from transformers import CLIPConfig, CLIPModel

        if user_path(self.weights).is_file():
            config = CLIPConfig(**PUBLISHED)
        else:
            config = CLIPConfig.from_json_file(find_file(self.weights, "config.json"))
        path = find_file(self.weights, "model.safetensors", "pytorch_model.bin")
        found = {name: value for name, value in read_weights(path).items() if not name.endswith(".position_ids")}
        with torch.device("meta"):
            model = CLIPModel(config)
        load_weights(path, found, model, "PickScore's CLIP")
        self._tokenize = SimpleTokenizer(context_length=config.text_config.max_position_embeddings)
        self._size = config.vision_config.image_size
        return model

    def score(self, batch: RewardBatch) -> torch.Tensor:
        """(B,) float32 on the CPU."""
        self.load()
        texts_BD = self.encoded_once(batch.prompts, self._encode_texts)
        images_BD = self.encoded(batch.images, self._encode_images)
        scale = self._model.logit_scale.float().exp().cpu()
        return numbers_only(scale * cosines(images_BD, texts_BD))

    def _encode_texts(self, prompts: Sequence[str]) -> torch.Tensor:
        # What stands behind the end token is never looked at: the text tower is causal and read at that token.
        features = self._model.get_text_features(input_ids=self._tokenize(list(prompts)).to(self._device))
        return getattr(features, "pooler_output", features)

    def _encode_images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        pixels_BCHW = center_cropped(images, self._size).to(self._device, self.dtype)
        features = self._model.get_image_features(pixel_values=pixels_BCHW)
        return getattr(features, "pooler_output", features)
