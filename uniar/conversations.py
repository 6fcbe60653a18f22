"""Conversations → what comes before the next turn, a picture or text (docs/checkpoint-format.md, 6).

Shapes: U conversations · P prefix positions · T new tokens · L levels · S patches per token · K bits per code.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import torch
from PIL import Image
from torch import Tensor

from uniar.drawing_model import DrawingModel
from uniar.errors import UserError
from uniar.reading.json_lines import is_unicode
from uniar.reading.pictures import in_rgb
from uniar.reading.prompt_text import refuse_tokens, reserved_tokens
from uniar.turn_prompt import Grid, TurnPrompt, drawing_positions, prefix_multiple, text_positions

BEGIN, END = "<|vision_start|>", "<|vision_end|>"
"""what stands around a picture"""


@dataclass(frozen=True)
class Drawing:
    """A picture as its visual bits (T, L, S, K), {0, 1}, in `rows` rows of visual tokens: one that the model drew."""

    bits: Tensor
    rows: int

    @property
    def grid(self) -> Grid:
        """Raises UserError where the rows are not full."""
        tokens = len(self.bits)
        if self.rows < 1 or not tokens or tokens % self.rows:
            raise UserError(f"a drawing's {tokens} visual tokens do not fill {self.rows} rows.")
        return self.rows, tokens // self.rows


Picture: TypeAlias = Image.Image | Drawing
Role: TypeAlias = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """A turn that was taken: texts and pictures in their order."""

    role: Role
    parts: tuple[str | Picture, ...]


def encode_turns(
    conversations: Sequence[Sequence[Message]],
    model: DrawingModel,
    processor: Any,
    *,
    grid: Grid | None = None,
    new_tokens: int | None = None,
    unconditional: bool = False,
) -> TurnPrompt:
    """What comes before the next turn of U conversations, in the checkpoint's own chat template, on the model's device.

    With `grid` (rows, columns of visual tokens) the turn is a picture: the last message, which is a user's, ends with
    UniAR's request for it. With `new_tokens` it is a text of so many tokens at most. `unconditional` adds the branch
    that guides drawing: all pictures of the conversation, in one message, and none of its text.

    Images are encoded here, each by itself, so that their bits do not depend on the batch; drawings are taken as they
    are. Texts of users may not hold a token with a meaning of its own. Texts of the assistant may hold anything: what
    looks like such a token there was written in letters and is encoded in letters.

    Raises UserError for a refused text, for a drawing whose rows are not full or whose bits are another model's,
    and for a conversation or a template that leaves no place for a part; ValueError where not one of `grid` and
    `new_tokens` is given.
    """
    if (grid is None) == (new_tokens is None) or (unconditional and grid is None):
        raise ValueError("a turn has a grid, perhaps with an unconditional branch, or new_tokens.")
    _check(conversations, processor, drawing=grid is not None)
    # An image that stands in many conversations is encoded once.
    parts = [part for messages in conversations for message in messages for part in message.parts]
    every = list({id(part): part for part in parts if not isinstance(part, str)}.values())
    drawings = dict(zip(map(id, every), as_drawings(every, model, processor), strict=True))
    read = [
        [replace(each, parts=tuple(drawings.get(id(part), part) for part in each.parts)) for each in messages]
        for messages in conversations
    ]
    conditional = _encode(read, model, processor, grid, new_tokens)
    if not unconditional:
        return conditional
    dropped = [[Message("user", tuple(_drawings(messages)))] for messages in read]
    shared = dropped if every else dropped[:1]
    return replace(conditional, unconditional=_encode(shared, model, processor, grid, None))


@torch.no_grad()
def as_drawings(pictures: Sequence[Picture], model: DrawingModel, processor: Any) -> list[Drawing]:
    """Pictures as the model sees them, on its device: images go through the vision tower, one at a time."""
    found, merge = [], model.config.vision_config.spatial_merge_size
    for picture in pictures:
        if isinstance(picture, Drawing):
            shape = model.config.vision_config.code_shape
            if picture.bits.shape[1:] != shape:
                raise UserError(f"a drawing's bits are {tuple(picture.bits.shape)}; this model's are {('T', *shape)}.")
            found.append(Drawing(picture.bits.to(model.device, torch.uint8), picture.rows))
            continue
        made = processor.image_processor(images=[in_rgb(picture)], return_tensors="pt")
        pixels, grid = (made[name].to(model.device) for name in ("pixel_values", "image_grid_thw"))
        found.append(Drawing(model.model.visual.encode(pixels, grid), int(made["image_grid_thw"][0, 1]) // merge))
    return found


def _check(conversations: Sequence[Sequence[Message]], processor: Any, *, drawing: bool) -> None:
    reserved = reserved_tokens(processor)
    for messages in conversations:
        if not messages or (drawing and messages[-1].role != "user"):
            last = messages[-1].role if messages else "no one"
            raise UserError(f"the conversation ends with a message of {last}; it must end with one of the user.")
        for message in messages:
            if message.role not in get_args(Role):
                raise UserError(f"a message has the role {message.role!r}; it must be {', '.join(get_args(Role))}.")
            if isinstance(message.parts, str):
                raise UserError(f"the parts of a message are {message.parts!r}; they must be a tuple, as of one text.")
            for part in message.parts:
                if not isinstance(part, str | Image.Image | Drawing):
                    kind = type(part).__name__
                    raise UserError(f"a part of a message is a {kind}; it must be a text, an image or a drawing.")
                if isinstance(part, str) and not is_unicode(part):
                    raise UserError(f"the text {part!r} is not text in UTF-8.")
                if isinstance(part, str) and message.role != "assistant":
                    refuse_tokens(part, f"the prompt {part!r}", reserved)


def _drawings(messages: Sequence[Message]) -> list[Drawing]:
    return [part for message in messages for part in message.parts if isinstance(part, Drawing)]


def _encode(
    conversations: Sequence[Sequence[Message]],
    model: DrawingModel,
    processor: Any,
    grid: Grid | None,
    new_tokens: int | None,
) -> TurnPrompt:
    """Of conversations whose pictures are all drawings."""
    request = None if grid is None else f"<image_gen> generate image {grid[0]} {grid[1]}"
    padded = processor.tokenizer.pad(
        {"input_ids": [_token_ids(messages, processor, request) for messages in conversations]},
        padding_side="left",
        pad_to_multiple_of=prefix_multiple(model),
        return_tensors="pt",
    )
    ids, mask, pictures = padded["input_ids"], padded["attention_mask"], [_drawings(each) for each in conversations]
    grids = [[picture.grid for picture in row] for row in pictures]
    if grid is None:
        positions = text_positions(ids, mask, new_tokens or 0, model, grids)
    else:
        positions = drawing_positions(ids, mask, grid, model, grids)
    bits = [picture.bits for row in pictures for picture in row]
    counts = tuple(sum(len(picture.bits) for picture in row) for row in pictures)
    return TurnPrompt(ids, mask, positions, torch.cat(bits) if bits else None, counts).to(model.device)


def _token_ids(messages: Sequence[Message], processor: Any, request: str | None) -> list[int]:
    """A conversation up to where its next turn begins.

    What the assistant said and drew goes around the template, which is given stand-ins that no user's text can hold:
    so a template need not know of pictures there, and no text of the model's own can end its turn.
    """
    own: list[list[int]] = []
    counts: list[int] = []
    """the visual tokens of each picture that the template places"""
    content: list[dict[str, Any]] = []
    for message in messages:
        parts = []
        for part in message.parts:
            assert not isinstance(part, Image.Image)  # `encode_turns` has made a drawing of it
            if message.role == "assistant":
                parts.append({"type": "text", "text": f"\0{len(own)}\0"})
                own.append(_own_ids(part, processor))
            elif isinstance(part, str):
                parts.append({"type": "text", "text": part})
            else:
                parts.append({"type": "image"})
                counts.append(len(part.bits))
        content.append({"role": message.role, "content": parts})
    if request is not None:
        content[-1]["content"].append({"type": "text", "text": request})
    text = processor.apply_chat_template(content, tokenize=False, add_generation_prompt=True)
    text += "" if request is None else BEGIN

    pieces = re.split("\0([0-9]+)\0", text)
    if pieces[1::2] != [str(number) for number in range(len(own))] or text.count(processor.image_token) != len(counts):
        raise UserError("the checkpoint's chat template leaves out a text or a picture of the conversation.")
    left = iter(counts)
    ids: list[int] = []
    for place, piece in enumerate(pieces):
        if place % 2:
            ids += own[int(piece)]
        else:
            widened = re.sub(re.escape(processor.image_token), lambda found: found[0] * next(left), piece)
            ids += processor.tokenizer(widened, add_special_tokens=False)["input_ids"]
    return ids


def _own_ids(part: str | Drawing, processor: Any) -> list[int]:
    """A text or drawing of the assistant."""
    if isinstance(part, str):
        return processor.tokenizer(part, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    picture = BEGIN + processor.image_token * len(part.bits) + END
    return processor.tokenizer(picture, add_special_tokens=False)["input_ids"]
