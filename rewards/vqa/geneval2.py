"""`geneval2`: does a vision-language model answer each of the prompt's questions as it should?

Soft-TIFA of GenEval 2 (Kamath et al. 2025, arXiv:2512.16853).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from rewards.contract.base import RewardBatch
from rewards.models.model_reward import Precision, numbers_only
from rewards.vqa.image_text_model import ImageTextReward
from rewards.vqa.yes_no import ANSWERS, reserved_tokens, single_tokens, yes_probability
from uniar.errors import UserError

KEY = "vqa_list"
SUFFIX = " Answer in one word."
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


class GenEval2(ImageTextReward):
    """The mean over the questions of the sample's metadata of the probability, 0 to 1, that the first token of the
    answer is the right one: geometric over a prompt's questions, as GenEval 2 scores prompts (one near 0 takes all),
    or arithmetic, as it scores atoms. A sample without questions has no score. Details: `atoms`, the probability of
    each question in their order; `mean`, their arithmetic mean; which is the weakest.

    The metadata is that of GenEval 2's file: `vqa_list`, pairs of question and answer. "How many …?" is right as a word
    or in digits, "yes" as Yes or yes, any other answer as it stands; each with and without a capital and a space, as
    far as these are a single token of the model's.

    Args:
        model: hub id or local folder of an image-text-to-text model of transformers with a chat template.
        mean: "geometric" or "arithmetic".
        batch_size: questions asked at a time.
        device: where it runs; null follows the trainer (a GPU if there is one).
        dtype: of weights and activations.

    Raises UserError for a model that cannot be had or lacks weights, when it is loaded, and for metadata of another
    form.
    """

    usual_range = (0.0, 1.0)

    def __init__(
        self,
        model: str = "Qwen/Qwen3-VL-8B-Instruct",
        mean: Literal["geometric", "arithmetic"] = "geometric",
        batch_size: int = 8,
        device: str | None = None,
        dtype: Precision = "bfloat16",
    ):
        super().__init__(batch_size, device, dtype)
        self.model, self.mean = model, mean

    def build(self) -> nn.Module:
        model = super().build()
        self._tokens: dict[str, list[int]] = {}
        return model

    def check_sample(self, prompt: str, metadata: Mapping[str, Any]) -> None:
        questions_of(metadata)

    def score(self, batch: RewardBatch) -> list[dict[str, Any] | UserError | None]:
        self.load()
        reserved = reserved_tokens(self._processor)
        results: list[dict[str, Any] | UserError | None] = [None] * len(batch)
        asked: list[tuple[int, str, str]] = []
        for row, metadata in enumerate(batch.metadata):
            try:
                questions = questions_of(metadata)
                for question, answer in questions:
                    if held := next((token for token in reserved if token in question), None):
                        raise UserError(f"the question {question!r} holds {held}, which stands for an image's tokens")
                    self._tokens_of(question, answer)
                asked += [(row, question, answer) for question, answer in questions]
            except UserError as error:
                results[row] = error
        if not asked:
            return results
        logits = self.first_token_logits([(batch.images[row], f"{question}{SUFFIX}") for row, question, _ in asked])
        atoms: dict[int, list[tuple[float, str]]] = {}
        for (row, question, answer), own in zip(asked, logits, strict=True):
            share = numbers_only(yes_probability(own[None].float(), self._tokens_of(question, answer))).item()
            atoms.setdefault(row, []).append((share, question))
        for row, found in atoms.items():
            shares = [share for share, _ in found]
            average, (least, question) = sum(shares) / len(shares), min(found)
            results[row] = {
                "score": geometric_mean(shares) if self.mean == "geometric" else average,
                "mean": average,
                "atoms": shares,
                "why": f"weakest: {question} {least:.2f}",
            }
        return results

    def _tokens_of(self, question: str, answer: str) -> list[int]:
        """The tokens that begin a right answer."""
        words = right_answers(question, answer)
        key = "\n".join(words)
        if key not in self._tokens:
            self._tokens[key] = single_tokens(self._processor.tokenizer, words, f"the answer to {question!r}")
        return self._tokens[key]


def questions_of(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs of question and answer; none without the key. Raises UserError for another form."""
    pairs = metadata.get(KEY)
    if pairs is None:
        return []
    if not isinstance(pairs, list | tuple) or not all(_is_pair(pair) for pair in pairs):
        raise UserError(f"metadata {KEY!r} is {pairs!r}; a list of pairs [question, answer] is needed.")
    return [(question, answer) for question, answer in pairs]


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(x, str) and x.strip() for x in pair)


def right_answers(question: str, answer: str) -> list[str]:
    """What counts as right, in the forms that a tokenizer may have a token for."""
    if answer.strip().lower() == "yes":
        return list(ANSWERS)
    words = [answer.strip()]
    if question.startswith("How many") and words[0].lower() in NUMBERS:
        words.append(str(NUMBERS.index(words[0].lower())))
    forms = [form for word in words for form in (word, word.lower(), word.capitalize())]
    return list(dict.fromkeys(f"{space}{form}" for form in forms for space in ("", " ")))


def geometric_mean(values: Sequence[float]) -> float:
    """0 where one is."""
    return 0.0 if min(values) <= 0 else math.exp(sum(map(math.log, values)) / len(values))
