"""From what a judge wrote to a number: parsers for text and JSON, and the expectation over its log-probabilities."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NUMBER = r"[-+]?[0-9]+(?:\.[0-9]+)?"
_NO_MORE = r"(?!\.?[0-9]|[A-Za-z]|\s*(?:[-–~]|to\b)\s*[0-9])"
_ROUNDING = 1e-3  # log-probabilities of near certain tokens may come out above 0 by this much


class Unreadable(ValueError):
    """A judge's answer from which no score can be read."""


@dataclass(frozen=True)
class Rating:
    """A number that a judge wrote, and where in its answer: characters `start` to `end`."""

    value: float
    start: int
    end: int


def label_pattern(label: str) -> str:
    """A regular expression for a line such as "Style Score (1-5): 4", for `label` "Style Score", with "/5" after the
    number or without, and Markdown around it or not. Its group is the number; "4-5", "4 to 5" and "4th" are none."""
    words = r"\s+".join(re.escape(word) for word in label.split())
    return rf"(?i)\b{words}\b[*_\s]*+(?:\([^)\n]{{0,200}}\)[*_\s]*+)?[:=][*_\s]*+({NUMBER}){_NO_MORE}"


def read_rating(answer: str, pattern: str, scale: tuple[float, float], what: str) -> Rating:
    """The last match of `pattern` in the answer (a judge that reasons first ends with its verdict), by its first group.

    Raises Unreadable without a match, for a group that is no number, one outside the scale, and "4/10" on a scale that
    ends elsewhere.
    """
    matches = list(re.finditer(pattern, answer))
    if not matches:
        raise Unreadable(f"the judge's answer has no {what}: {shown(answer)}")
    text, (start, end) = matches[-1].group(1), matches[-1].span(1)
    if text is None or not re.fullmatch(NUMBER, text):
        raise Unreadable(f"the judge's {what} is {shown(text or '')}, which is no number")
    out_of = re.match(rf"\s*(?:/|out of)\s*({NUMBER})", answer[end:])
    if out_of and float(out_of.group(1)) != scale[1]:
        raise Unreadable(f"the judge's {what} is out of {out_of.group(1)}, the scale ends at {scale[1]:g}")
    return Rating(_within(float(text), scale, what), start, end)


def read_json_rating(answer: str, key: str, scale: tuple[float, float]) -> Rating:
    """The number under `key` of the last JSON object in the answer that has it, however deep that object stands; around
    it there may be anything. A number in quotation marks counts.

    Raises Unreadable as `read_rating` does.
    """
    found = None
    decoder = json.JSONDecoder()
    start = answer.find("{")
    while start >= 0:
        end = start + 1
        try:
            value, after = decoder.raw_decode(answer, start)
        except (ValueError, RecursionError):
            pass  # a brace that begins no JSON
        else:
            if key in value:
                found, end = (value[key], start, after), after
        start = answer.find("{", end)
    if found is None:
        raise Unreadable(f"the judge's answer has no JSON object with the key {key!r}: {shown(answer)}")
    value, start, end = found
    if isinstance(value, str) and re.fullmatch(NUMBER, value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unreadable(f"the judge's {key!r} is {shown(json.dumps(value))}, which is no number")
    rating = _within(value, scale, repr(key))
    name = re.escape(json.dumps(key, ensure_ascii=False))
    written = list(re.finditer(rf'{name}\s*:\s*"?({NUMBER})', answer[start:end]))
    if not written or float(written[-1].group(1)) != rating:  # the place matters to the expectation only
        return Rating(rating, start, start)
    return Rating(rating, start + written[-1].start(1), start + written[-1].end(1))


def _within(value: float, scale: tuple[float, float], what: str) -> float:
    if not scale[0] <= value <= scale[1]:
        raise Unreadable(f"the judge's {what} is {value:g}, the scale is {scale[0]:g} to {scale[1]:g}")
    return value


def can_take_expectation(scale: tuple[float, float]) -> bool:
    """Whether every rating of the scale is one digit, hence one token: 10 is two tokens for many models, of which the
    first alone says nothing."""
    return all(bound == int(bound) and 0 <= bound <= 9 for bound in scale)


def expected_rating(
    rating: Rating, answer: str, tokens: Sequence[Mapping[str, Any]], scale: tuple[float, float]
) -> float | None:
    """Σ n·p(n) / Σ p(n) over the digits n of the scale, by the log-probabilities at the place of the rating.

    Args:
        rating: a number as it was read from `answer`.
        tokens: `choices[0].logprobs.content` of the chat completion: the answer's tokens, each with `top_logprobs`.
        scale: for which `can_take_expectation`.

    Returns the rating itself where the judge wrote a fraction, whose first digit is not what it meant; None where the
    tokens do not spell the answer or have no alternatives at that place.
    """
    if rating.end - rating.start != 1:
        return rating.value
    pieces = [_bytes(token) for token in tokens]
    # The answer may lack what servers strip from it: an end-of-text token, white space around it.
    offset = b"".join(pieces).find(answer.encode("utf-8", "surrogatepass"))
    if not answer or offset < 0:
        return None
    place, at = offset + len(answer[: rating.start].encode("utf-8", "surrogatepass")), 0
    for piece, token in zip(pieces, tokens, strict=True):
        if at <= place < at + len(piece):
            return _expectation(piece[: place - at], piece[place - at + 1 :], token, scale)
        at += len(piece)
    return None


def _expectation(before: bytes, after: bytes, token: Mapping[str, Any], scale: tuple[float, float]) -> float | None:
    """Over the tokens that have a digit between `before` and `after`: " 4" and " 3", not " 4" and "4."."""
    alternatives = token.get("top_logprobs")
    if not isinstance(alternatives, list) or not alternatives:
        return None
    masses: dict[int, float] = {}
    for entry in [*alternatives, token]:  # the token that was drawn may be missing among the likeliest
        written, logprob = _bytes(entry), entry.get("logprob") if isinstance(entry, Mapping) else None
        digit = written[len(before) : len(written) - len(after)]
        if written != before + digit + after or not re.fullmatch(rb"[0-9]", digit):
            continue
        likely = isinstance(logprob, int | float) and not isinstance(logprob, bool) and logprob <= _ROUNDING
        if likely and scale[0] <= int(digit) <= scale[1]:
            masses[int(digit)] = math.exp(logprob)
    total = sum(masses.values())
    return sum(digit * mass for digit, mass in masses.items()) / total if total > 0 else None


def _bytes(token: Any) -> bytes:
    """A token's own bytes, which are not always characters; b"" for what is no token."""
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
