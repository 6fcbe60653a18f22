"""A judge's chat completion: where its answer begins after its thinking, and where its tokens spell it."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Tokens = Sequence[Mapping[str, Any]]
"""`choices[0].logprobs.content`: an entry per token, with `token`, `bytes`, `logprob` and `top_logprobs`"""

_FINISHED = ("", "none", "stop", "eos", "eos_token", "stop_sequence", "end_turn", "complete", "completed")
_CUT = ("length", "max_tokens", "max_output_tokens", "model_length")
_REASONING = ("reasoning_content", "reasoning", "thinking")  # fields beside `content`, as servers call them
_THINKING = {"think", "thinking", "thought", "thoughts", "reasoning", "analysis", "reflection", "scratchpad"}
# <think>, </seed:think>, <|end_of_thought|>, <|START_THINKING|>, ◁/think▷, [THINK], <unused94> and the like.
_MARK = re.compile(
    r"[<◁](?P<slash>\|?/?)(?P<name>[A-Za-z][A-Za-z_:]{0,40})(?:\s[^<>◁▷\n]{0,100})?\|?[>▷]"
    r"|\[(?P<square>/?)THINK\]|<unused9(?P<number>[45])>"
)
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<>]{0,100}(?:<\|message\|>)?")
_FINAL = "assistantfinal"  # what is left of <|start|>assistant<|channel|>final<|message|> without special tokens
_ANALYSIS = re.compile(r"\s*(?:assistant)?(?:analysis|commentary)(?=[A-Z])")
_PROCESS, _RESPONSE = (re.compile(rf"(?i)here(?:'s| is) my {what}:") for what in ("thought process", "response"))
# What may stand before and after an answer among its tokens, and not in it.
_SPECIAL = re.compile(rb"(?:\s|<[^<>\s]{1,80}>)*")


class Unreadable(ValueError):
    """A judge's answer from which no score can be read."""


@dataclass(frozen=True)
class Completion:
    """`content` as the server gave it, what it gave as thinking besides, and the tokens of either, if it gave any."""

    content: str
    reasoning: str = ""
    tokens: Tokens | None = None


def read_completion(body: bytes) -> Completion:
    """The body of an answer to /chat/completions. Raises Unreadable for anything but one choice that came to its own
    end."""
    try:
        [choice] = json.loads(body)["choices"]
        message, reason, logprobs = choice["message"], choice.get("finish_reason"), choice.get("logprobs")
        content, reasoning = message["content"], [message.get(name) for name in _REASONING]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = shown(body.decode("utf-8", "replace")[-200:])
        raise Unreadable(f"the judge's server answered with no chat completion: {said}") from error
    if isinstance(content, list):  # parts, some of which may be thinking
        parts = [{"text": part} if isinstance(part, str) else part for part in content]
        parts = [part for part in parts if isinstance(part, Mapping)]
        said = [part for part in parts if part.get("type", "text") in ("text", "output_text")]
        reasoning += [json.dumps(part) for part in parts if part not in said]
        content = _joined([part.get("text") for part in said])
    ended = str(reason).strip().lower().removeprefix("finish_reason_")
    if ended not in _FINISHED:
        cut = "was cut at max_tokens" if ended in _CUT else f"ended by {shown(str(reason))}"
        raise Unreadable(f"the judge's answer {cut}: {shown(content if isinstance(content, str) else '')}")
    if not isinstance(content, str) or not content.strip():
        raise Unreadable("the judge's answer is empty")
    tokens = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    thought = next((text for text in reasoning if isinstance(text, str) and text.strip()), "")
    return Completion(content, thought, tokens if isinstance(tokens, list) else None)


def _joined(texts: list[Any]) -> str:
    """The parts of an answer as one. Raises Unreadable for what is not text, and for a number that may be two."""
    if not all(isinstance(text, str) for text in texts):
        raise Unreadable(f"the judge's answer has a part that is not text: {shown(str(texts))}")
    if any(re.search(r"[0-9.]\Z", one) and re.match(r"[0-9.]", two) for one, two in pairwise(texts)):
        raise Unreadable(f"the judge's answer is parted within a number: {shown(str(texts))}")
    return "".join(texts)


def start_of_answer(content: str) -> int:
    """Where the answer begins: after the thinking that stands before it, in whatever marks; 0 where there is none.

    Raises Unreadable for thinking without an end, or with nothing after it.
    """
    start, ended = 0, True
    for mark in _MARK.finditer(content):
        if (closes := _closes(mark)) is not None:
            start, ended = (mark.end(), True) if closes else (start, False)
    if channels := list(_CHANNEL.finditer(content)):
        start, ended = channels[-1].end(), channels[-1].group(1) == "final"
    elif _ANALYSIS.match(content) or _FINAL in content:
        found = content.rfind(_FINAL)
        start, ended = max(start, found + len(_FINAL)), found >= 0
    if process := list(_PROCESS.finditer(content, start)):
        responses = list(_RESPONSE.finditer(content, process[-1].end()))
        start, ended = (responses[-1].end(), ended) if responses else (start, False)
    if not ended:
        raise Unreadable(f"the judge's thinking has no end: {shown(content)}")
    if not content[start:].strip():
        raise Unreadable(f"the judge's answer is empty after its thinking: {shown(content)}")
    return start


def _closes(mark: re.Match) -> bool | None:
    """Whether a mark ends thinking or begins it; None for a mark of something else."""
    if mark["square"] is not None:
        return mark["square"] == "/"
    if mark["number"] is not None:
        return mark["number"] == "5"
    words = set(re.split("[_:]", mark["name"].lower()))
    return ("/" in mark["slash"] or "end" in words) if words & _THINKING else None


def place_in_tokens(completion: Completion) -> int | None:
    """The byte at which the content begins in what the tokens spell together; None where they do not spell it.

    The content must be the end of them: what the judge thought may have the same words in it. Before it there may be
    the thinking, and nothing else.
    """
    content = completion.content.strip().encode("utf-8", "surrogatepass")
    spelt = b"".join(map(token_bytes, completion.tokens or ()))
    place = spelt.rfind(content)
    if place < 0 or not _SPECIAL.fullmatch(spelt, place + len(content)):
        return None
    before = spelt[:place]
    if not _SPECIAL.fullmatch(before):
        thought = completion.reasoning.strip().encode("utf-8", "surrogatepass")
        said = before.decode("utf-8", "replace")
        marked = _FINAL in said or _CHANNEL.search(said) or any(map(_closes, _MARK.finditer(said)))
        if not marked and not (thought and thought in before):
            return None
    blank = completion.content[: len(completion.content) - len(completion.content.lstrip())]
    return place - len(blank.encode("utf-8"))


def token_bytes(token: Any) -> bytes:
    """A token's own bytes, which are not always characters; b"" for what is not a token."""
    if not isinstance(token, Mapping):
        return b""
    numbers, text = token.get("bytes"), token.get("token")
    if isinstance(numbers, list) and all(type(number) is int and 0 <= number < 256 for number in numbers):
        return bytes(numbers)
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else b""


def shown(text: str) -> str:
    """Text for a message: one line, its end if it is long, because there the verdict stands."""
    line = " ".join(text.split())
    return repr(line if len(line) <= 120 else "..." + line[-117:])
