"""VQAScore (Lin et al. 2024, arXiv:2404.01291): ask a model about the image, take the probability that it says yes."""

import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from rewards.models.model_reward import numbers_only
from uniar.errors import UserError

QUESTION = 'Does this figure show "{prompt}"? Please answer Yes or No.'
EDIT_QUESTION = (
    'The first picture was to be edited: "{prompt}". Is the second picture that edit, with everything else as it was? '
    "Please answer Yes or No."
)
ANSWERS = ("Yes", "yes", " Yes", " yes")


class Question:
    """A template with fields in braces: {prompt}, or any metadata key of the sample. Raises UserError for a template
    that Python's format strings do not allow, or whose fields are more than a name."""

    def __init__(self, template: str):
        try:
            parts = list(string.Formatter().parse(template))
        except ValueError as error:
            raise UserError(f"question is {template!r}: {error}.") from error
        for _, field, spec, conversion in parts:
            if field is not None and (not field.isidentifier() or spec or conversion):
                raise UserError(
                    f"question is {template!r}: the field {{{field}}} must be a name, such as {{prompt}}; "
                    "a brace itself is written twice."
                )
        self.template = template
        self.fields = [field for _, field, _, _ in parts if field is not None]

    def ask(self, prompt: str, metadata: Mapping[str, Any]) -> str | None:
        """The question about one sample; None where its metadata lacks a field."""
        known = {**metadata, "prompt": prompt}
        if any(known.get(field) is None for field in self.fields):
            return None
        return self.template.format(**{field: known[field] for field in self.fields})


class Answers:
    """Which first tokens of an answer count, for one tokenizer: those of `answers` that are a single token of it, and
    those of `against` likewise. Raises UserError where none of either is."""

    def __init__(self, tokenizer: Any, answers: Sequence[str], against: Sequence[str] | None):
        self.tokenizer = tokenizer
        self.yes = single_tokens(tokenizer, answers, "answers")
        self.no = None if against is None else single_tokens(tokenizer, against, "against")

    def read(self, logits_BV: torch.Tensor) -> tuple[list[float], list[str]]:
        """Logits of the first token → the probability of a yes for each sample, and the likeliest token."""
        logits_BV = logits_BV.float().cpu()
        said = [self.tokenizer.decode([token]) for token in logits_BV.argmax(1).tolist()]
        return numbers_only(yes_probability(logits_BV, self.yes, self.no)).tolist(), said


def single_tokens(tokenizer: Any, words: Sequence[str], key: str) -> list[int]:
    """Ids of the words that are one token each, without repetition. Raises UserError where none is."""
    encoded = [tokenizer.encode(word, add_special_tokens=False) for word in words]
    found = list(dict.fromkeys(ids[0] for ids in encoded if len(ids) == 1))
    if not found:
        raise UserError(f"{key} is {list(words)!r}, none of which is a single token for this model.")
    return found


def yes_probability(logits_BV: torch.Tensor, yes: Sequence[int], no: Sequence[int] | None = None) -> torch.Tensor:
    """(B,) probability, under softmax, of any of the tokens `yes`; with `no`, that probability given that the token is
    one of either."""
    for_it = torch.logsumexp(logits_BV[:, list(yes)], dim=1)
    if no is None:
        return torch.exp(for_it - torch.logsumexp(logits_BV, dim=1))
    return torch.sigmoid(for_it - torch.logsumexp(logits_BV[:, list(no)], dim=1))


def ask_all(
    question: Question,
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
    reserved: Sequence[str],
    answer: Callable[[list[int], list[str]], tuple[list[float], list[str]]],
) -> list[dict[str, Any] | UserError | None]:
    """Scores B samples: None where the question cannot be asked, a UserError where it holds a `reserved` token (such as
    the one that stands for an image), else what `answer` (rows and their questions → probabilities and tokens) gives.
    """
    asked = [question.ask(prompt, row) for prompt, row in zip(prompts, metadata, strict=True)]
    results: list[dict[str, Any] | UserError | None] = [None] * len(asked)
    rows = []
    for row, text in enumerate(asked):
        held = next((token for token in reserved if text is not None and token in text), None)
        if held is not None:
            results[row] = UserError(f"the question {text!r} holds {held}, which stands for an image's own tokens")
        elif text is not None:
            rows.append(row)
    if rows:
        scores, said = answer(rows, [asked[row] for row in rows])
        for row, score, token in zip(rows, scores, said, strict=True):
            results[row] = {"score": score, "question": asked[row], "answer": token}
    return results


def chat(processor: Any, question: str, image: Image.Image | None = None, pictures: int = 1) -> str:
    """The prompt of a question about one image, or so many pictures, up to where the answer begins. Raises UserError
    for a processor without a chat template."""
    if not getattr(processor, "chat_template", None):
        raise UserError(f"{type(processor).__name__} has no chat template; an instruction-tuned model is needed.")
    picture = {"type": "image"} if image is None else {"type": "image", "image": image}
    content = [*[picture] * pictures, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def reserved_tokens(processor: Any) -> list[str]:
    """Texts that a processor would replace by the tokens of an image or video."""
    tokens = [getattr(processor, name, None) for name in ("image_token", "video_token")]
    return [token for token in tokens if isinstance(token, str) and token]
