"""`vqa_score`: any vision-language model is asked whether the image shows the prompt (arXiv:2404.01291)."""

import inspect
from typing import Any

import torch
from torch import nn

from rewards.contract.base import RewardBatch
from rewards.models.model_reward import ModelReward, Precision
from rewards.vqa.yes_no import ANSWERS, QUESTION, Answers, Question, ask_all, chat, reserved_tokens
from uniar.errors import UserError
from uniar.reading.files import reason_of


class VQAScore(ModelReward):
    """The probability that the answer's first token is a yes, 0 to 1. A sample whose metadata lacks a field of the
    question has no score. Details: the question, and the likeliest first token.

    Args:
        model: hub id or local folder of an image-text-to-text model of transformers with a chat template, such as
            Qwen2-VL, Qwen3-VL, or UniAR itself.
        question: template; {prompt} is the prompt, any other field a metadata key of the sample.
        answers: what counts as a yes; those of them that are a single token of the model's.
        against: null for the probability among all tokens; a list such as [No, no] for P(yes) / (P(yes) + P(no)).
        batch_size: images judged at a time.
        device: where it runs; null follows the trainer (a GPU if there is one).
        dtype: of weights and activations.

    Raises UserError for a model that cannot be had or lacks weights, when it is loaded.
    """

    usual_range = (0.0, 1.0)

    def __init__(
        self,
        model: str = "Qwen/Qwen3-VL-4B-Instruct",
        question: str = QUESTION,
        answers: list[str] | tuple[str, ...] = ANSWERS,
        against: list[str] | None = None,
        batch_size: int = 8,
        device: str | None = None,
        dtype: Precision = "bfloat16",
    ):
        super().__init__(batch_size, device, dtype)
        self.model, self.question, self.answers, self.against = model, Question(question), answers, against

    def build(self) -> nn.Module:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        import uniar.modeling_uniar  # noqa: F401  (makes UniAR known to transformers' Auto classes)
        from uniar.checkpoint import require_exact_tensors

        try:
            self._processor = AutoProcessor.from_pretrained(self.model)
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
        self._read = Answers(tokenizer, self.answers, self.against)
        parameters = inspect.signature(model.forward).parameters
        keeps = "logits_to_keep" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._options = {"use_cache": False, **({"logits_to_keep": 1} if keeps else {})}
        return model

    def score(self, batch: RewardBatch) -> list[dict[str, Any] | UserError | None]:
        self.load()

        def answer(rows: list[int], questions: list[str]) -> tuple[list[float], list[str]]:
            pairs = [(batch.images[row], question) for row, question in zip(rows, questions, strict=True)]
            return self._read.read(self.encoded(pairs, self._first_token_logits))

        return ask_all(self.question, batch.prompts, batch.metadata, reserved_tokens(self._processor), answer)

    def _first_token_logits(self, pairs: list) -> torch.Tensor:
        """(B, vocabulary)"""
        inputs = self._processor(
            text=[chat(self._processor, question, image) for image, question in pairs],
            images=[[image.convert("RGB")] for image, _ in pairs],
            padding=True,
            return_tensors="pt",
        )
        return self._model(**inputs.to(self._device, self.dtype), **self._options).logits[:, -1]
