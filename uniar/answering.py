"""Questions about pictures: what the model answers, and how probable it finds a given answer.

A picture is an image, or the visual bits of one that the model drew itself, which it reads back without decoding.

Shapes: B questions · P positions of a question · A tokens of an answer, its end included · V vocabulary ·
T visual tokens · L levels · S patches per token · K bits per code.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from uniar.conversations import Drawing, Message, Picture, encode_turns
from uniar.reading.pictures import in_rgb
from uniar.reading.prompt_text import refuse_tokens, reserved_tokens
from uniar.turn_prompt import patch_grids
from uniar.writing import end_tokens, write

if TYPE_CHECKING:
    from uniar.configuration_uniar import UniARConfig
    from uniar.modeling_uniar import UniARForConditionalGeneration


@dataclass(frozen=True)
class Exchange:
    """B questions, and behind them their answers where those are given; left-padded, so that all end together."""

    input_ids: Tensor
    """(B, P + A) int64"""
    attention_mask: Tensor
    """(B, P + A) int64, 0 on the padding"""
    answer_mask: Tensor
    """(B, A) bool: which of the last A columns of a row belong to its answer"""
    images: dict[str, Tensor]
    """`pixel_values` or `visual_bits`, and `image_grid_thw`, in the order of the rows"""

    @property
    def answers(self) -> Tensor:
        """(B, A) the answers' tokens, in the last columns; what stands before a shorter answer means nothing."""
        return self.input_ids[:, self.input_ids.shape[1] - self.answer_mask.shape[1] :]

    def to(self, device: torch.device | str) -> "Exchange":
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            answer_mask=self.answer_mask.to(device),
            images={name: tensor.to(device) for name, tensor in self.images.items()},
        )


def encode_exchange(
    processor: Any,
    config: "UniARConfig",
    pictures: Sequence[Picture],
    questions: Sequence[str],
    answers: Sequence[str] | None = None,
) -> Exchange:
    """One picture per question, in the chat template, up to where the answer begins or, with `answers`, ends.

    An answer ends with the token that ends a turn (`<|im_end|>`), which the model has to say too. All pictures are
    images, or all are drawings. Raises UserError for a question or answer that holds the token of an image, and
    ValueError for lists of different lengths.
    """
    given = [*questions, *(answers or ())]
    reserved = reserved_tokens(processor)
    for text in given:
        refuse_tokens(text, f"the text {text!r}", reserved)
    images, counts = _encode_pictures(processor, config, pictures)
    ids = []
    for question, count in zip(questions, counts, strict=True):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        ids.append(_token_ids(processor, text.replace(processor.image_token, processor.image_token * count)))
    said = [[] for _ in questions] if answers is None else [answer_ids(processor, answer) for answer in answers]
    rows = [question + answer for question, answer in zip(ids, said, strict=True)]
    padded = processor.tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
    longest = max((len(answer) for answer in said), default=0)
    lengths = torch.tensor([len(answer) for answer in said])
    answer_mask = torch.arange(longest) >= longest - lengths[:, None]
    return Exchange(padded["input_ids"], padded["attention_mask"], answer_mask, images)


def answer_ids(processor: Any, answer: str) -> list[int]:
    """The tokens that the model has to say for this answer, the end of its turn included."""
    return [*_token_ids(processor, answer), processor.tokenizer.eos_token_id]


def answer(
    model: "UniARForConditionalGeneration",
    processor: Any,
    pictures: Sequence[Picture],
    questions: Sequence[str],
    *,
    max_new_tokens: int = 32,
) -> list[str]:
    """The likeliest token each time, until the model ends its turn or has said `max_new_tokens`: B strings."""
    asked = [[Message("user", pair)] for pair in zip(pictures, questions, strict=True)]
    prompt = encode_turns(asked, model, processor, new_tokens=max_new_tokens)
    noise = torch.zeros(len(asked), max_new_tokens)
    return write(model, prompt, noise, ends=end_tokens(model), temperature=0).texts(processor)


@torch.no_grad()
def answer_log_probs(
    model: "UniARForConditionalGeneration",
    processor: Any,
    pictures: Sequence[Picture],
    questions: Sequence[str],
    answers: Sequence[str],
) -> list[Tensor]:
    """log p of each token of each answer, its end included, teacher-forced: B tensors (A of that answer,), float32.

    Their sum is the log-probability that the model, sampling at temperature 1, answers exactly that.
    """
    exchange = encode_exchange(processor, model.config, pictures, questions, answers).to(model.device)
    logits = answer_logits(model, exchange)
    log_probs = logits.log_softmax(-1).gather(-1, exchange.answers[..., None])[..., 0].cpu()
    return [row[mask] for row, mask in zip(log_probs, exchange.answer_mask.cpu(), strict=True)]


def answer_logits(model: Callable[..., Any], exchange: Exchange) -> Tensor:
    """(B, A, V) float32: the logits that predict each answer token, with gradient where it is switched on.

    `model` is called as UniARForConditionalGeneration is, so it may be wrapped (DDP, DeepSpeed, peft).
    """
    columns = exchange.answer_mask.shape[1]
    logits = model(
        input_ids=exchange.input_ids,
        attention_mask=exchange.attention_mask,
        **exchange.images,
        use_cache=False,
        logits_to_keep=columns + 1,
    ).logits
    return logits[:, :-1].float()  # the state before a token predicts it


def _token_ids(processor: Any, text: str) -> list[int]:
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def _encode_pictures(
    processor: Any, config: "UniARConfig", pictures: Sequence[Picture]
) -> tuple[dict[str, Tensor], list[int]]:
    """What the model is given of the pictures, and how many tokens each takes."""
    vision = config.vision_config
    drawings = [picture for picture in pictures if isinstance(picture, Drawing)]
    images = [picture for picture in pictures if not isinstance(picture, Drawing)]
    if not images:
        grids = patch_grids([[drawing.grid for drawing in drawings]], vision.spatial_merge_size)
        inputs = {"visual_bits": torch.cat([drawing.bits for drawing in drawings]), "image_grid_thw": grids}
    elif drawings:
        raise ValueError("images and drawings cannot be asked about in one batch.")
    else:
        encoded = processor.image_processor(images=[in_rgb(image) for image in images], return_tensors="pt")
        inputs = {name: encoded[name] for name in ("pixel_values", "image_grid_thw")}
    return inputs, [math.prod(grid) // vision.spatial for grid in inputs["image_grid_thw"].tolist()]
