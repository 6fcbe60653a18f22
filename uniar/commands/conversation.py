"""Asking a checkpoint: a conversation about pictures, or about nothing in particular."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from transformers import TextStreamer

from uniar.commands.loading import memory_advice

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
    """0: the likeliest token each time; above, sampled as the checkpoint's generation_config says"""
    pictures: Sequence[Image.Image] = ()
    messages: list[dict[str, Any]] = field(default_factory=list)

    def ask(self, prompt: str, seed: int, *, stream: bool = False) -> Answer:
        """The answer, remembered for the next question. With `stream` it is printed as it comes."""
        shown = [{"type": "image", "image": picture} for picture in self.pictures] if not self.messages else []
        self.messages.append({"role": "user", "content": [*shown, {"type": "text", "text": prompt}]})
        inputs = self.processor.apply_chat_template(
            self.messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        ).to(self.model.device)
        tokenizer = self.processor.tokenizer
        sampling = (
            {"do_sample": True, "temperature": self.temperature}
            if self.temperature > 0
            else {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        )
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), memory_advice("this conversation", "use smaller pictures."):
            torch.manual_seed(seed)
            output = self.model.generate(
                **inputs,
                max_new_tokens=self.max_new_tokens,
                streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None,
                **sampling,
            )
        tokens = output[0, inputs["input_ids"].shape[1] :].tolist()
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        self.messages.append({"role": "assistant", "content": [{"type": "text", "text": text}]})
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return Answer(text, truncated=len(tokens) >= self.max_new_tokens and tokens[-1] not in ends)
