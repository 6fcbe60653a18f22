"""Any image-text-to-text model of transformers, asked questions about images: what its answers begin with."""

import inspect
from typing import Any

import torch
from PIL import Image
from torch import nn

from rewards.models.model_reward import ModelReward
from rewards.vqa.yes_no import chat
from uniar.errors import UserError
from uniar.reading.files import reason_of


class ImageTextReward(ModelReward):
    """A reward that asks the model `self.model`, a hub id or local folder, with a chat template."""

    model: str

    def build(self) -> nn.Module:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        import uniar.modeling_uniar  # noqa: F401  (makes UniAR known to transformers' Auto classes)
        from uniar.checkpoint import require_exact_tensors

        try:
            self._processor: Any = AutoProcessor.from_pretrained(self.model)
            model, info = AutoModelForImageTextToText.from_pretrained(
                self.model, dtype=self.dtype, ignore_mismatched_sizes=True, output_loading_info=True
            )
        except UserError:
            raise
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise UserError(f"model {self.model!r} cannot be loaded: {reason_of(error)}.") from error
        require_exact_tensors(self.model, model, info, whole=False)
        tokenizer = self._processor.tokenizer
        tokenizer.padding_side = "left"  # so that the answer begins in the last column of every row
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        parameters = inspect.signature(model.forward).parameters
        keeps = "logits_to_keep" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._options = {"use_cache": False, **({"logits_to_keep": 1} if keeps else {})}
        return model

    def load(self) -> None:
        if self._model is None:  # in its type already; casting would round the frequencies of rotary embeddings too
            self._model = self.build().eval().requires_grad_(False).to(self._device)

    def first_token_logits(self, pairs: list[tuple[Image.Image, str]]) -> torch.Tensor:
        """(len(pairs), vocabulary) float32 on the CPU: of the first token of the answer to each question."""
        return self.encoded(pairs, self._first_token_logits)

    def _first_token_logits(self, pairs: list) -> torch.Tensor:
        inputs = self._processor(
            text=[chat(self._processor, question, image) for image, question in pairs],
            images=[[image.convert("RGB")] for image, _ in pairs],
            padding=True,
            return_tensors="pt",
        )
        return self._model(**inputs.to(self._device, self.dtype), **self._options).logits[:, -1]
