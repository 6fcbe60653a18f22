"""What an episode asks of the policy, turn by turn."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from rl.data.prompts import PromptRecord
from uniar.conversations import Message, Picture


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
    size: tuple[int, int] | None = None
    """(height, width) in pixels; None: the sample's, by its record or the recipe"""


Request: TypeAlias = Write | Draw
Episode: TypeAlias = Callable[[PromptRecord], Generator[Request, Any, None]]
TurnKind: TypeAlias = Literal["text", "picture"]
PICTURES: tuple[TurnKind, ...] = ("picture",)


def turns(*kinds: TurnKind) -> Callable[[Episode], Episode]:
    """Says which kinds of turns an episode may take, so that no more is trained than they need; without it, both."""

    def marked(episode: Episode) -> Episode:
        episode.turns = kinds  # type: ignore[attr-defined]
        return episode

    return marked
