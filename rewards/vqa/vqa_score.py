"""`vqa_score`: any vision-language model is asked whether the image shows the prompt (arXiv:2404.01291)."""

from typing import Any

from torch import nn

from rewards.contract.base import RewardBatch
from rewards.models.model_reward import Precision
from rewards.vqa.image_text_model import ImageTextReward
from rewards.vqa.yes_no import ANSWERS, QUESTION, Answers, Question, ask_all, reserved_tokens
from uniar.errors import UserError


class VQAScore(ImageTextReward):
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
        model = super().build()
        self._read = Answers(self._processor.tokenizer, self.answers, self.against)
        return model

    def score(self, batch: RewardBatch) -> list[dict[str, Any] | UserError | None]:
        self.load()

        def answer(rows: list[int], questions: list[str]) -> tuple[list[float], list[str]]:
            pairs = [(batch.images[row], question) for row, question in zip(rows, questions, strict=True)]
            return self._read.read(self.first_token_logits(pairs))

        return ask_all(self.question, batch.prompts, batch.metadata, reserved_tokens(self._processor), answer)
