"""What an episode asks of the policy, turn by turn."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from PIL import Image

from rl.data.prompts import PromptRecord
from uniar.conversations import Drawing, Message, Picture


@dataclass(frozen=True)
class Write:
    """A text, the model's next turn of a conversation. What is sent back is the text, without the tokens that stand for
    more than their letters."""

    messages: Sequence[Message]
    max_new_tokens: int | None = None
    """longest text, in tokens; None: rollout.max_new_tokens of the recipe"""


@dataclass(frozen=True)
class Draw:
    """A picture drawn from a prompt, or with `pictures` as an edit of them. What is sent back is a `Drawing`, which the
    model can be shown without decoding it."""

    prompt: str
    pictures: Sequence[Picture] = ()
    size: Sequence[int] | None = None
    """(height, width) in pixels; None: the sample's, by its record or the recipe"""


def fault_of(request: object, kinds: Sequence["TurnKind"]) -> str | None:
    """What is wrong with what an episode yielded that says it takes turns of these kinds; None where nothing is."""
    if not isinstance(request, Draw | Write):
        return f"yielded {type(request).__name__}; an episode yields Draw or Write"
    name, kind = type(request).__name__, "text" if isinstance(request, Write) else "picture"
    if kind not in kinds:
        return f"yielded {name}, and its turns are {' and '.join(kinds) or 'none'}; add {kind!r} to its @turns"
    if isinstance(request, Write):
        if not _all_are(Message, request.messages):
            return "yielded Write with messages that are not a list of Message"
        if not (request.max_new_tokens is None or _is_whole(request.max_new_tokens)):
            return f"yielded Write with max_new_tokens {request.max_new_tokens!r}; a text has 1 token at least"
        return None
    if not isinstance(request.prompt, str):
        return f"yielded Draw with a prompt that is {type(request.prompt).__name__}; it must be a text"
    if not _all_are((Image.Image, Drawing), request.pictures):
        return "yielded Draw with pictures that are not a list of images or drawings"
    size = request.size
    if not (size is None or (isinstance(size, list | tuple) and len(size) == 2 and all(map(_is_whole, size)))):
        return f"yielded Draw with size {size!r}; it must be (height, width) in pixels"
    return None


def _all_are(kind: Any, values: object) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(value, kind) for value in values)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


Request: TypeAlias = Write | Draw
Episode: TypeAlias = Callable[[PromptRecord], Generator[Request, Any, None]]
TurnKind: TypeAlias = Literal["text", "picture"]
PICTURES: tuple[TurnKind, ...] = ("picture",)


def turns(*kinds: TurnKind) -> Callable[[Episode], Episode]:
    """Says which turns an episode takes, as many as a sample takes at most: no more is trained than these kinds need,
    other kinds are refused, and the memory of so many is planned for. Without it, both kinds are trained, and one of
    each is planned for."""

    def marked(episode: Episode) -> Episode:
        episode.turns = kinds  # type: ignore[attr-defined]
        return episode

    return marked
