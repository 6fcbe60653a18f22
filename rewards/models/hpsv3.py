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
from uniar.reading.files import decoded, read_regular, reason_of, user_path

TOKEN = "<|Reward|>"
PIXELS = 256 * 28 * 28
"""of an image, as nearly as whole patches allow"""
PROMPT = "{text_prompt}"
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
        instruction: a text file with what the model was trained to read after the image, word by word: INSTRUCTION and
            then prompt_with_special_token of hpsv3/dataset/utils.py in its authors' repository, whose words are theirs
            and not repeated here. {text_prompt} stands for the prompt; it holds <|Reward|> once.
        weights: hub id, a local folder with HPSv3.safetensors, or that file.
        base: hub id or local folder of the Qwen2-VL it was trained from; its config, tokenizer and image processor are
            read, not its weights.
        batch_size: images judged at a time.
        device: where it runs; null follows the trainer (a GPU if there is one).
        dtype: of weights and activations; the head is always float32.

    Raises UserError for an instruction without its two marks, for weights that are missing or of another model, when
    they are loaded, and for a prompt that holds one of the model's own tokens.
    """

    usual_range = (-5.0, 15.0)

    def __init__(
        self,
        instruction: str,
        weights: str = "MizzenAI/HPSv3",
        base: str = "Qwen/Qwen2-VL-7B-Instruct",
        batch_size: int = 8,
        device: str | None = None,
        dtype: Precision = "bfloat16",
    ):
        super().__init__(batch_size, device, dtype)
        self.instruction, self.weights, self.base = instruction, weights, base

    def build(self) -> nn.Module:
        from transformers import AutoProcessor, Qwen2VLConfig

        try:
            config = Qwen2VLConfig.from_pretrained(self.base)
            self._processor: Any = AutoProcessor.from_pretrained(self.base)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"base {self.base!r} cannot be read: {reason_of(error)}.") from error
        self._asked = _read_instruction(self.instruction)
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
        if self._model is None:
            model = self.build().eval().requires_grad_(False)
            model.model.to(self.dtype)  # the head stays as it is in the file
            model.rm_head.float()
            self._model = model.to(self._device)

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
        texts = [_chat(self._processor, self._asked.replace(PROMPT, prompt)) for _, prompt in pairs]
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


def _read_instruction(name: str) -> str:
    path = user_path(name)
    text = decoded(read_regular(path, "instruction"), path)
    if text.count(TOKEN) != 1 or PROMPT not in text:
        raise UserError(
            f"the instruction '{name}' does not hold {PROMPT}, and {TOKEN} once; it must be the authors' own."
        )
    return text


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
