"""What a model understands of pictures, measured beside what it draws: held-out questions, answered and scored."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from rl.data.questions import QuestionRecord
from rl.distributed.sharing import even_batches, in_order, share_of
from uniar.answering import answer, answer_log_probs

if TYPE_CHECKING:
    from accelerate import Accelerator

    from uniar.modeling_uniar import UniARForConditionalGeneration


ANSWER_SCORES = {"exact_match": "exact match", "p_answer": "P(answer)", "p_token": "P(answer) per token"}
"""What is measured of each question, and what a reader calls it."""


def normalised(text: str) -> str:
    """What exact match compares: without surrounding space, in lower case, without a full stop at the end."""
    return text.strip().lower().removesuffix(".").removesuffix("。").strip()


class Answered(NamedTuple):
    """One question: what the model said, and the log-probability of the right answer and its number of tokens."""

    said: str
    log_p: float
    tokens: int


@dataclass(frozen=True)
class Understanding:
    """N questions answered, in the order of their file."""

    answers: list[str]
    """the likeliest token each time"""
    exact_match: Tensor
    """(N,) float64: 1 where the answer is the right one, up to case, surrounding space and a final full stop; else 0"""
    p_answer: Tensor
    """(N,) float64: the probability of the right answer word for word, the product over its tokens, its end included"""
    p_token: Tensor
    """(N,) float64: the geometric mean of those factors, which does not fall with the length of the answer"""
    seconds: float

    def metrics(self) -> dict[str, float]:
        """For the log: means over the questions."""
        means = {f"eval_understanding/{name}": getattr(self, name).mean().item() for name in ANSWER_SCORES}
        return {**means, "eval_understanding/seconds": self.seconds}

    def columns(self) -> dict[str, list[Any]]:
        """Plain values, one per question: each score, and what the model said."""
        return {**{name: getattr(self, name).tolist() for name in ANSWER_SCORES}, "answers": self.answers}


class Examiner:
    """Holds what is asked, besides the model that answers."""

    def __init__(
        self, questions: Sequence[QuestionRecord], processor: Any, *, batch_size: int = 8, max_new_tokens: int = 32
    ) -> None:
        self.questions, self.processor, self.max_new_tokens = list(questions), processor, max_new_tokens
        self.batches = even_batches(len(self.questions), batch_size)

    def run(self, model: "UniARForConditionalGeneration", accelerator: "Accelerator | None" = None) -> Understanding:
        """Asks each question once. Several processes share the batches; all return the same, however many they are.

        `model` is the bare one, its weights gathered where they are sharded.
        """
        started = time.perf_counter()
        answered: dict[int, Answered] = {}
        for numbers in share_of(self.batches, accelerator):
            records = [self.questions[number] for number in numbers]
            answered.update(zip(numbers, self._ask(model, records), strict=True))
        rows = in_order(answered, accelerator)
        said = [row.said for row in rows]
        right = [normalised(record.answer) for record in self.questions]
        exact = [normalised(text) == answer for text, answer in zip(said, right, strict=True)]
        log_p, tokens = (torch.tensor([row[k] for row in rows], dtype=torch.float64) for k in (1, 2))
        return Understanding(
            answers=said,
            exact_match=torch.tensor(exact, dtype=torch.float64),
            p_answer=log_p.exp(),
            p_token=(log_p / tokens).exp(),
            seconds=time.perf_counter() - started,
        )

    def _ask(self, model: "UniARForConditionalGeneration", records: Sequence[QuestionRecord]) -> list[Answered]:
        images, questions = [record.load_image() for record in records], [record.question for record in records]
        right = [record.answer for record in records]
        with torch.no_grad():
            said = answer(model, self.processor, images, questions, max_new_tokens=self.max_new_tokens)
            log_probs = answer_log_probs(model, self.processor, images, questions, right)
        return [Answered(text, math.fsum(row.tolist()), len(row)) for text, row in zip(said, log_probs, strict=True)]
