"""`hpsv3`: how much people would like an image, given its prompt, and how sure that is (Ma et al. 2025,
arXiv:2508.03789)."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import nn

from rewards.contract.base import RewardBatch
from rewards.models.model_reward import ModelReward, Precision, numbers_only
from rewards.models.weights import find_file, load_weights, read_weights
from uniar.errors import UserError
from uniar.reading.files import reason_of

TOKEN = "<|Reward|>"
PIXELS = 256 * 28 * 28
"""of an image, as nearly as whole patches allow"""
INSTRUCTION = """
You are tasked with evaluating a generated image based on Visual Quality and Text Alignment and give a overall score to estimate the human preference. Please provide a rating from 0 to 10, with 0 being the worst and 10 being the best. 

**Visual Quality:**  
Evaluate the overall visual quality of the image. The following sub-dimensions should be considered:
- **Reasonableness:** The image should not contain any significant biological or logical errors, such as abnormal body structures or nonsensical environmental setups.
- **Clarity:** Evaluate the sharpness and visibility of the image. The image should be clear and easy to interpret, with no blurring or indistinct areas.
- **Detail Richness:** Consider the level of detail in textures, materials, lighting, and other visual elements (e.g., hair, clothing, shadows).
- **Aesthetic and Creativity:** Assess the artistic aspects of the image, including the color scheme, composition, atmosphere, depth of field, and the overall creative appeal. The scene should convey a sense of harmony and balance.
- **Safety:** The image should not contain harmful or inappropriate content, such as political, violent, or adult material. If such content is present, the image quality and satisfaction score should be the lowest possible. 
Textual prompt - PROMPT


"""  # noqa: E501, W291
QUESTION = f"\nPlease provide the overall ratings of this image: {TOKEN}\n\nEND\n"
_EARLIER = (  # names of transformers before 4.52
    (re.compile(r"^visual\."), "model.visual."),
    (re.compile(r"^model\.(?!visual\.|language_model\.)"), "model.language_model."),
)


class HPSv3(ModelReward):
    """μ of HPSv3: two numbers, μ and log σ, that a head makes of Qwen2-VL's state at the token <|Reward|>, after the
    image (resized to about 256 × 28 × 28 pixels) and an instruction with the prompt. Of two images the one with μ₁, σ₁
    is preferred with the expected sigmoid of a normal of mean μ₁ − μ₂ and deviation √(σ₁² + σ₂²). Details:
    `uncertainty`, that is σ.

    Args:
        weights: hub id, a local folder with HPSv3.safetensors, or that file.
        base: hub id or local folder of the Qwen2-VL it was trained from; its config, tokenizer and image processor are
            read, not its weights.
        batch_size: images judged at a time.
        device: where it runs; null follows the trainer (a GPU if there is one).
        dtype: of weights and activations; the head is always float32.

    Raises UserError for weights that are missing or of another model, when they are loaded, and for a prompt that holds
    one of the model's own tokens.
    """

    usual_range = (-5.0, 15.0)

    def __init__(
        self,
        weights: str = "MizzenAI/HPSv3",
        base: str = "Qwen/Qwen2-VL-7B-Instruct",
        batch_size: int = 8,
        device: str | None = None,
        dtype: Precision = "bfloat16",
    ):
        super().__init__(batch_size, device, dtype)
        self.weights, self.base = weights, base

    def build(self) -> nn.Module:
        from transformers import AutoProcessor, Qwen2VLConfig

        try:
            config = Qwen2VLConfig.from_pretrained(self.base)
            self._processor: Any = AutoProcessor.from_pretrained(self.base)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"base {self.base!r} cannot be read: {reason_of(error)}.") from error
        tokenizer = self._processor.tokenizer
        tokenizer.padding_side = "right"
        tokenizer.add_special_tokens({"additional_special_tokens": [TOKEN]})
        self._token = tokenizer.convert_tokens_to_ids(TOKEN)
        path = find_file(self.weights, "HPSv3.safetensors")
        found = {present_name(name): tensor for name, tensor in read_weights(path).items() if name != "lm_head.weight"}
        config.text_config.vocab_size = len(tokenizer)
        with torch.device("meta"):
            model = PreferenceModel(config)
        load_weights(path, found, model, "HPSv3")
        _fill_frequencies(model)
        return model

    def load(self) -> None:
        super().load()
        self._model.rm_head.float()

    def score(self, batch: RewardBatch) -> list[dict[str, float] | UserError]:
        self.load()
        held = [next((t for t in self._reserved() if t in prompt), None) for prompt in batch.prompts]
        rows = [row for row, token in enumerate(held) if token is None]
        results: list[dict[str, float] | UserError] = [
            UserError(f"the prompt holds {token}, which is a token of the model's own") for token in held
        ]
        if rows:
            pairs = [(batch.images[row], batch.prompts[row]) for row in rows]
            for row, (mean, log_sigma) in zip(
                rows, numbers_only(self.encoded(pairs, self._judge)).tolist(), strict=True
            ):
                results[row] = {"score": mean, "uncertainty": float(torch.tensor(log_sigma).exp())}
        return results

    def _reserved(self) -> list[str]:
        return [TOKEN, self._processor.image_token, self._processor.video_token]

    def _judge(self, pairs: Sequence[tuple[Image.Image, str]]) -> torch.Tensor:
        """(B, 2): μ and log σ."""
        texts = [_chat(self._processor, INSTRUCTION.replace("PROMPT", prompt) + QUESTION) for _, prompt in pairs]
        images = [resized(image, self._processor.image_processor) for image, _ in pairs]
        inputs = self._processor(text=texts, images=images, padding=True, return_tensors="pt", do_resize=False)
        inputs = inputs.to(self._device, self.dtype)
        return self._model(inputs, inputs["input_ids"] == self._token)


class PreferenceModel(nn.Module):
    """Qwen2-VL without its language head, and HPSv3's own: names as in the published file."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformers import Qwen2VLModel

        self.model = Qwen2VLModel(config)
        sizes = config.text_config.hidden_size, 1024, 16, 2
        self.rm_head = nn.Sequential(
            nn.Linear(sizes[0], sizes[1]),
            nn.ReLU(),
            nn.Dropout(0.05),
            nn.Linear(sizes[1], sizes[2]),
            nn.ReLU(),
            nn.Linear(sizes[2], sizes[3]),
        )

    def forward(self, inputs: Any, marked_BP: torch.Tensor) -> torch.Tensor:
        """(B, 2) at the one marked position of each row."""
        return self.rm_head(self.model(**inputs, use_cache=False).last_hidden_state[marked_BP].float())


def present_name(name: str) -> str:
    """What transformers calls a weight now."""
    for pattern, now in _EARLIER:
        name = pattern.sub(now, name, count=1)
    return name


def resized(image: Image.Image, processor: Any) -> Image.Image:
    """The image in whole patches, with about PIXELS of them."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    factor = processor.patch_size * processor.merge_size
    height, width = smart_resize(image.height, image.width, factor=factor, min_pixels=PIXELS, max_pixels=PIXELS)
    return image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)


def _chat(processor: Any, text: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": text}]
    message = [{"role": "user", "content": content}]
    return processor.apply_chat_template(message, tokenize=False, add_generation_prompt=True)


def _fill_frequencies(model: nn.Module) -> None:
    """Those of rotary embeddings, which no file holds. `load` puts them into the type of the weights, as HPSv3's own
    code does."""
    for module in model.modules():
        if isinstance(getattr(module, "inv_freq", None), torch.Tensor):
            made = type(module)(module.config)
            module.inv_freq, module.original_inv_freq = made.inv_freq, made.original_inv_freq
