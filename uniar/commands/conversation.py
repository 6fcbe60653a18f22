"""Asking a checkpoint: a conversation about pictures, or about nothing in particular."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from transformers import TextStreamer

from uniar.conversations import Message, encode_turns
from uniar.placed_checkpoint import memory_advice
from uniar.writing import end_tokens, text_noise, write

if TYPE_CHECKING:
    from uniar.modeling_uniar import UniARForConditionalGeneration


@dataclass(frozen=True)
class Answer:
    """What the model said."""

    text: str
    truncated: bool
    """it had not ended when the tokens ran out"""


@dataclass
class Conversation:
    """Turns so far; pictures belong to the first one. Each question is answered with all of them in view."""

    model: "UniARForConditionalGeneration"
    processor: Any
    max_new_tokens: int
    temperature: float
    """0: the likeliest token each time; above, sampled from the whole distribution"""
    pictures: Sequence[Image.Image] = ()
    messages: list[Message] = field(default_factory=list)

    def ask(self, prompt: str, seed: int, *, stream: bool = False) -> Answer:
        """The answer, remembered for the next question. With `stream` it is printed as it comes."""
        asked = [*self.messages, Message("user", (*(() if self.messages else self.pictures), prompt))]
        streamer = TextStreamer(self.processor.tokenizer, skip_special_tokens=True) if stream else None
        with memory_advice("this conversation", "use smaller pictures."):
            written = write(
                self.model,
                encode_turns([asked], self.model, self.processor, new_tokens=self.max_new_tokens),
                text_noise([seed], self.max_new_tokens),
                ends=end_tokens(self.model),
                temperature=self.temperature,
                seen=None if streamer is None else lambda tokens: streamer.put(torch.tensor(tokens)),
            )
        if streamer is not None:
            streamer.end()
        (text,) = written.texts(self.processor)
        self.messages = [*asked, Message("assistant", (text,))]
        return Answer(text, truncated=not written.ended[0])
