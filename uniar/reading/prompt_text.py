"""What a prompt, a question or an answer may not hold."""

import unicodedata
from collections.abc import Iterable
from typing import Any

from uniar.errors import UserError
from uniar.reading.json_lines import is_unicode

RESERVED = (
    *("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
)
"""Tokens of every UniAR checkpoint that stand for pictures, or begin and end turns; known before one is loaded."""
_HARMLESS = tuple(f"<|{what}_{end}|>" for what in ("object_ref", "box", "quad") for end in ("start", "end"))


def reserved_tokens(processor: Any) -> tuple[str, ...]:
    """RESERVED, and what else is a special token of the checkpoint's own tokenizer."""
    special = [token.content for token in processor.tokenizer.added_tokens_decoder.values() if token.special]
    own = (processor.image_token, processor.video_token, *special)
    return tuple(dict.fromkeys(token for token in (*RESERVED, *own) if token not in _HARMLESS))


def check_text(text: str, where: str, tokens: Iterable[str] = RESERVED) -> None:
    """Raises UserError, which begins with `where`, for text that is empty, not Unicode, or that `refuse_tokens`
    refuses."""
    if all(one.isspace() or unicodedata.category(one) == "Cf" for one in text):
        raise UserError(f"{where} is empty.")
    if not is_unicode(text):
        raise UserError(f"{where} is not text in UTF-8.")
    refuse_tokens(text, where, tokens)


def refuse_tokens(text: str, where: str, tokens: Iterable[str]) -> None:
    """Raises UserError for text with a NUL or one of `tokens`."""
    for token in ("\0", *tokens):
        if token in text:
            named = "a NUL character" if token == "\0" else f"{token}, which has a meaning of its own to the model"
            raise UserError(f"{where} contains {named}; leave it out.")
