"""From a judge's answer to a number: parsers for text and JSON, and the expectation over its log-probabilities.

Exactly one rating on the scale, or none: a judge that wrote "4 or 5", "4,5", "4 of 10" or "4. Actually, 3" has not
said 4.
"""

import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rewards.judge.completion import Completion, Unreadable, place_in_tokens, shown, token_bytes

NUMBER = r"[-+−]?[0-9]+(?:\.[0-9]+)?"
_ROUNDING = 1e-3  # log-probabilities of near certain tokens may come out above 0 by this much
_MARKS = r"(?:[*_`\s]|<[^<>\n]{1,40}>)*+"  # Markdown and tags such as <answer>
_SENTENCE_ENDS = re.compile(r"[.!。！][*_`)\]}»”\"']*+(?:\s+|\Z)|[。！]")
_CLAUSE = re.compile(r"\s*+[,;:，；、(（—–|]|\s+-\s|\s+(?=(?i:because|since|due|given|based)\b)")
_UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_WORDS = {word: float(number) for number, word in enumerate(f"{_UNITS} seventeen eighteen nineteen".split())}
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety hundred"
_WORDS |= {word: 20.0 + 10 * number for number, word in enumerate(_TENS.split())} | {"half": 0.5}
_UNITS_OF = r"(?i:points?|pts|stars?|分|点|점)"
_OUT_OF = re.compile(
    rf"[*_`\s]*+(?:{_UNITS_OF}[*_`\s]*+)?\(?(?:/|out of\b|of\b)[*_`\s]*+({NUMBER}|(?i:{'|'.join(_WORDS)})(?![a-z]))"
)
_BARE = re.compile(rf"\A{_MARKS}({NUMBER})(?:{_OUT_OF.pattern})?(?:{_MARKS}{_UNITS_OF})?{_MARKS}\.?+{_MARKS}\Z")
_UNIT = re.compile(rf"[*_`]*+(?:\s*+{_UNITS_OF})?+(?:[*_`)\]}}»”\"'|]|<[^<>\n]{{1,40}}>)*+")
_WIDE = str.maketrans("０１２３４５６７８９／．－＋＆", "0123456789/.-+&")
_AND = re.compile(r"(?i)\s*&(?:amp;)?\s*|\s+and\s+")
_LISTED = re.compile(r"(?m)^[\s*_`#>|•-]{0,20}(\d{1,2})[.)][ \t]+(?=[*_`\"“]{0,4}[^\W\d_])")
_SAID = re.compile(rf"(?i)(?<![a-z])(?:{'|'.join(_WORDS)})(?![a-z])|{NUMBER}|[^\x00-\x7f]")
_DENIED = re.compile(r"(?i)\b(?:not|never|cannot|unless|if|rather than|instead of)\b|n['’]t\b")
_MORE = re.compile(r"\.?[0-9]|[^\S\n]*(?:[-–~,/]|to\b|or\b|and\b|of\b|out of\b)[^\S\n]*[0-9]")
_PART = re.compile(r"[0-9][.,]?\Z|(?:\A|[^A-Za-z0-9])[-−]\Z")
_LINE_START = re.compile(r"(?:[\s*_`#>|•-]|\d{1,2}[.)]\s|<[^<>\n]{1,40}>)*+")
_MOST_CLAUSE = 300  # characters
_MOST_BRACES = 1000  # each may begin an object, so the time that reading takes grows with their square


@dataclass(frozen=True)
class Rating:
    """A number that a judge wrote, and where in its answer: characters `start` to `end`."""

    value: float
    start: int
    end: int

    def moved(self, by: int) -> "Rating":
        return replace(self, start=self.start + by, end=self.end + by)


def plain(answer: str) -> str:
    """The answer without what stands around words and numbers, every other character in its place: characters without
    width and emoji are blanks, wide digits are digits, and the numbers of a list that counts from 1 are blanks."""
    text = "".join(" " if _is_ornament(one) else one for one in answer.translate(_WIDE))
    last, pieces, end = 0, [], 0
    for item in _LISTED.finditer(text):
        number, (start, stop) = int(item[1]), item.span(1)
        if number not in (1, last + 1):
            return text
        last, pieces, end = number, [*pieces, text[end:start], " " * (stop + 1 - start)], stop + 1
    return "".join([*pieces, text[end:]])


def _is_ornament(character: str) -> bool:
    """Of a keycap digit too, what is not the digit. Some emoji say something: ten, a hundred, plus, minus."""
    if character.isascii() or character in "🔟💯➕➖":
        return False
    return character in "\u20e3\ufe0e\ufe0f" or unicodedata.category(character) in ("Cf", "So", "Sk", "Zs")


def read_labelled(answer: str, label: str, scale: tuple[float, float], others: Sequence[str] = ()) -> Rating:
    """The number of a line such as "Style Score (1-5): 4", for `label` "Style Score", with "/5" after the number or
    without, and Markdown around it or not, or the row of a table, "| Style Score | 4 |". `others`: labels that
    may follow.

    What the judge says on the way counts for nothing where the last such label begins a line and the others do not;
    in all other cases they must agree. Labels in quotation marks, and those of a sentence with "not" before them, are
    not its verdict. Raises Unreadable where there is not exactly one number that stands by itself, where any other,
    in digits or in words, follows anywhere behind it, unless it is another label's, and for one off the scale.
    """
    matches = re.finditer(_labelled(label), answer)
    found = [(match, _begins_line(answer, match.start())) for match in matches]
    found = [(match, begins) for match, begins in found if begins or (match[1] and not _denied(answer, match.start()))]
    if not found or found[-1][0][1] is None:
        raise Unreadable(f"the judge's answer has no {label}: {shown(answer)}")
    last, begins = found[-1]
    value = float(_plain(last[1]))
    different = [begun for match, begun in found if match[1] is not None and float(_plain(match[1])) != value]
    if any(different) or (different and not begins):
        raise Unreadable(f"the judge's answer has more than one {label}: {shown(answer)}")
    rating, end = _rating(answer, last, scale, label)
    rest = answer[end:]
    for other in others:
        rest = re.sub(rf"{_labelled(other)}(?:{_OUT_OF.pattern})?", ";", rest)
    if not _stands_alone(rest, value):
        raise Unreadable(f"the judge's {label} is not one number: {shown(answer[last.start() :][:100])}")
    return rating


def last_first(answer: str, labels: Sequence[str]) -> list[str]:
    """The labels in the order to read them in: first those that the answer lacks, then the last one first. What stands
    behind a label is then its own or was read already, so the first that cannot be read is the one at fault."""
    answer = plain(answer)
    places = {label: [match.start() for match in re.finditer(_labelled(label), answer)] for label in labels}
    return sorted(labels, key=lambda label: max(places[label], default=len(answer)), reverse=True)


def _labelled(label: str) -> str:
    """The pattern of a label and what it may have before its number, which is the first group. In a label "&", "&amp;"
    and "and" are the same."""
    parts = [part.split() for part in _AND.split(label.strip())]
    words = r"(?:\s*+&(?:amp;)?\s*+|\s+and\s+)".join(r"\s+".join(map(re.escape, part)) for part in parts)
    label = rf"(?i:\b{words}\b)[*_`\s]*+(?:\([^)\n]{{0,200}}\)[*_\s]*+)?"
    return rf"{label}(?:[:=：]|\|(?=[*_`\s]*+[-+−0-9]))[*_`\s]*+({NUMBER})?"


def read_bare(answer: str, scale: tuple[float, float], what: str) -> Rating | None:
    """The number that is the whole answer; None where there is more to it. Raises Unreadable for one off the scale."""
    match = _BARE.match(answer)
    return None if match is None else _rating(answer, match, scale, what)[0]


def read_pattern(answer: str, pattern: str, scale: tuple[float, float], what: str) -> Rating:
    """The number that is the first group of a regular expression, whose matches must agree. Raises Unreadable."""
    matches = list(re.finditer(pattern, answer))
    if not matches:
        raise Unreadable(f"the judge's answer has no {what}: {shown(answer)}")
    for match in matches:
        if match[1] is None or not re.fullmatch(NUMBER, match[1]):
            raise Unreadable(f"the judge's {what} is {shown(match[1] or '')}, which is not a number")
    ratings = [_rating(answer, match, scale, what)[0] for match in matches]
    if len({rating.value for rating in ratings}) > 1:
        raise Unreadable(f"the judge's answer has more than one {what}: {shown(answer)}")
    return ratings[-1]


def _rating(answer: str, match: re.Match, scale: tuple[float, float], what: str) -> tuple[Rating, int]:
    """The rating of a match's first group, and where what belongs to it ("/5") ends. Raises Unreadable for a part of a
    longer number or of several, "4/10" on a scale that ends elsewhere, and one off the scale."""
    start, end = match.span(1)
    out_of = _OUT_OF.match(answer, end)
    if out_of and _number(out_of[1]) != scale[1]:
        raise Unreadable(f"the judge's {what} is out of {out_of[1]}, the scale ends at {scale[1]:g}")
    after = out_of.end() if out_of else end
    if _MORE.match(answer, after) or _PART.search(answer[max(0, start - 2) : start]):
        raise Unreadable(f"the judge's {what} is not one number: {shown(answer[max(0, start - 20) : after + 20])}")
    return Rating(_within(float(_plain(match[1])), scale, what), start, end), after


def _plain(number: str) -> str:
    return number.replace("−", "-")


def _begins_line(answer: str, place: int) -> bool:
    """Whether nothing but Markdown, a bullet, a number or tags stand before it in its line."""
    start = answer.rfind("\n", 0, place) + 1
    return place - start <= _MOST_CLAUSE and _LINE_START.fullmatch(answer, start, place) is not None


def _denied(answer: str, place: int) -> bool:
    """Whether a label is spoken of, not given: in quotation marks, or after a "not" in its sentence."""
    before = answer[max(0, place - _MOST_CLAUSE) : place]
    return before[-1:] in tuple("\"'“‘”’«") or _DENIED.search(re.split(r"[.!?;\n]", before)[-1]) is not None


def _stands_alone(rest: str, value: float) -> bool:
    """Whether what follows a number leaves it as it is: first a unit or nothing, then the end of the line, of the
    sentence or a clause, and no other number to the end of the answer. "4th", "4½", "4 dogs" and "4, less one" do not.
    """
    rest = rest[_UNIT.match(rest).end() :]
    ends = not rest.partition("\n")[0].strip(" \t|\r") or _SENTENCE_ENDS.match(rest) or _CLAUSE.match(rest)
    return bool(ends) and all(_number(said[0]) in (None, value) for said in _SAID.finditer(rest))


def _number(said: str) -> float | None:
    """What digits, a number word or a character of any script stand for; None where that is not a number."""
    if len(said) == 1 and not said.isascii():
        return unicodedata.numeric(said, None)
    word = _WORDS.get(said.lower())
    return float(_plain(said)) if word is None else word


def read_json_rating(answer: str, key: str, scale: tuple[float, float]) -> Rating:
    """The number under `key` of the JSON objects in the answer that have it, however deep they stand, and which must
    agree; around them there may be anything. A number in quotation marks counts.

    Raises Unreadable as `read_labelled` does.
    """
    if (braces := answer.count("{")) > _MOST_BRACES:
        raise Unreadable(f"the judge's answer has {braces} opening braces, {_MOST_BRACES} at most are read")
    values: list[Any] = []
    span = (0, 0)
    start = answer.find("{")
    while start >= 0:
        inside: list[Any] = []
        decoder = json.JSONDecoder(object_pairs_hook=partial(_values_of, key, inside))
        try:
            _, end = decoder.raw_decode(answer, start)
        except (ValueError, RecursionError):
            end = start + 1  # a brace that begins no JSON
        else:
            values, span = values + inside, (start, end) if inside else span
        start = answer.find("{", end)
    if not values:
        raise Unreadable(f"the judge's answer has no JSON object with the key {key!r}: {shown(answer)}")
    ratings = {_within(_json_number(value, key), scale, repr(key)) for value in values}
    if len(ratings) > 1:
        raise Unreadable(f"the judge's answer has more than one {key!r}: {shown(answer)}")
    [rating], (start, end) = ratings, span
    name = re.escape(json.dumps(key, ensure_ascii=False))
    written = list(re.finditer(rf'{name}\s*:\s*"?({NUMBER})', answer[start:end]))
    if len(written) != 1 or float(_plain(written[0][1])) != rating:  # the place matters to the expectation only
        return Rating(rating, start, start)
    return Rating(rating, start + written[0].start(1), start + written[0].end(1))


def _values_of(key: str, values: list[Any], pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; what it has under the key, however often, is added to the values."""
    values += [value for name, value in pairs if name == key]
    return dict(pairs)


def _json_number(value: Any, key: str) -> float:
    if isinstance(value, str) and re.fullmatch(NUMBER, value):
        return float(_plain(value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unreadable(f"the judge's {key!r} is {shown(json.dumps(value))}, which is not a number")
    return float(str(value))  # an integer beyond any float is infinite


def _within(value: float, scale: tuple[float, float], what: str) -> float:
    if not scale[0] <= value <= scale[1]:
        raise Unreadable(f"the judge's {what} is {value:g}, the scale is {scale[0]:g} to {scale[1]:g}")
    return value


def can_take_expectation(scale: tuple[float, float]) -> bool:
    """Whether every rating of the scale is one digit, hence one token: 10 is two tokens for many models, of which the
    first alone says nothing."""
    return all(bound == int(bound) and 0 <= bound <= 9 for bound in scale)


def expected_rating(rating: Rating, completion: Completion, scale: tuple[float, float]) -> float | None:
    """Σ n·p(n) / Σ p(n) over the digits n of the scale, by the log-probabilities at the place of the rating.

    Args:
        rating: a number as it was read, by its place in the completion's content.
        completion: with its tokens.
        scale: for which `can_take_expectation`.

    Returns the rating itself where the judge wrote a fraction, whose first digit is not what it meant; None where the
    tokens do not spell the content or have no alternatives at that place.
    """
    if rating.end - rating.start != 1:
        return rating.value
    offset = place_in_tokens(completion)
    if offset is None:
        return None
    place, at = offset + len(completion.content[: rating.start].encode("utf-8", "surrogatepass")), 0
    for token in completion.tokens:
        piece = token_bytes(token)
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
        written, logprob = token_bytes(entry), entry.get("logprob") if isinstance(entry, Mapping) else None
        digit = written[len(before) : len(written) - len(after)]
        if written != before + digit + after or not re.fullmatch(rb"[0-9]", digit):
            continue
        likely = isinstance(logprob, int | float) and not isinstance(logprob, bool) and logprob <= _ROUNDING
        if likely and scale[0] <= int(digit) <= scale[1]:
            masses[int(digit)] = math.exp(logprob)
    total = sum(masses.values())
    return sum(digit * mass for digit, mass in masses.items()) / total if total > 0 else None
