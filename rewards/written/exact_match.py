"""`exact_match`: whether what a sample wrote is the right answer."""

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rewards.contract.base import Reward, RewardBatch
from uniar.errors import UserError

_AROUND = " \t\r\n.,;:!?\"'`*_()[]{}<>“”‘’«»。，！？：；"
_BEFORE, _AFTER = (f"[{re.escape(marks)}]*+" for marks in (_AROUND.replace(".", ""), _AROUND))
_NUMBER = re.compile(
    rf"{_BEFORE}([-+]?(?:[0-9]{{1,3}}(?:,[0-9]{{3}})+|[0-9]+)?(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)(\s*%)?{_AFTER}"
)
_LETTER = re.compile(r"\A[\s(\[*`]*([A-Za-z])(?:[.):\]*`]|\s*\Z)")
_THOUGHT = "</think>"


class ExactMatch(Reward):
    """1 where the last text that a sample wrote is a right answer, else 0. Case, spaces, punctuation around it and what
    comes before a last `</think>` do not count. A number counts by its value: "3.0" is 3, "1,200" is 1200, "50%" is
    0.5 or 50. A sample that wrote nothing, or whose metadata has no answer, has no score. Details: what was said, and
    what is right.

    Args:
        answer: the metadata key of the right answer, a string or a number, or a list of those, of which any is right.
        choices: the metadata key of a list of choices; where a sample has it, a letter stands for the choice in that
            place, in the right answer and in what was said ("B", "(B)", "B. a dog"). null for none.
        tolerance: by which a number may be off, as a share of the right one; 0 for none.
        pattern: a regular expression whose first group, in its last match, is the answer in a longer text, such as
            "<answer>(.*?)</answer>"; where nothing matches, the answer is wrong. null for the whole text.

    Raises UserError for a pattern without a group and a negative tolerance, and for metadata that is not an answer.
    """

    needs_image = False
    usual_range = (0.0, 1.0)

    def __init__(
        self,
        answer: str = "answer",
        choices: str | None = "choices",
        tolerance: float = 0.0,
        pattern: str | None = None,
    ):
        if not 0 <= tolerance < 1:
            raise UserError(
                f"tolerance is {tolerance:g}; a share of the right number, 0 or more and below 1, is needed."
            )
        self.answer, self.choices, self.tolerance, self._pattern = answer, choices, tolerance, None
        if pattern is not None:
            try:
                self._pattern = re.compile(pattern, re.DOTALL)
            except re.error as error:
                raise UserError(f"pattern {pattern!r} is not a regular expression: {error}.") from error
            if self._pattern.groups < 1:
                raise UserError(f"pattern {pattern!r} has no group; put the answer in parentheses.")

    def check_sample(self, prompt: str, metadata: Any) -> None:
        self._right(metadata), self._choices(metadata)

    def score(self, batch: RewardBatch) -> list[Any]:
        """For each sample a mapping with `score`, or None."""
        return [
            self._scored(texts[-1], right, metadata) if texts and (right := self._right(metadata)) is not None else None
            for texts, metadata in zip(batch.texts, batch.metadata, strict=True)
        ]

    def _scored(self, text: str, right: Sequence[Any], metadata: Any) -> dict[str, Any]:
        said = text.rpartition(_THOUGHT)[2]
        if self._pattern is not None:
            found = [match[1] or "" for match in self._pattern.finditer(said)]
            said = found[-1] if found else ""
        choices = self._choices(metadata)
        matches = any(self._same(_chosen(said, choices), _chosen(str(answer), choices)) for answer in right)
        return {"score": float(matches), "said": said.strip(), "right": [str(answer) for answer in right]}

    def _same(self, said: str, right: str) -> bool:
        one, other = number(said), number(right)
        if one is None or other is None:
            return bool(plain(said)) and plain(said) == plain(right)
        # "50%" is 0.5 or 50 where the other side has no sign.
        readings = {(1.0, 1.0)} if one.percent == other.percent else {(1.0, 1.0), (_share(one), _share(other))}
        return any(
            math.isclose(one.value * a, other.value * b, rel_tol=1e-9, abs_tol=self.tolerance * abs(other.value * b))
            for a, b in readings
        )

    def _right(self, metadata: Any) -> list[Any] | None:
        """The right answers; None where the sample has none. Raises UserError for what is not one."""
        given = metadata.get(self.answer)
        answers = given if isinstance(given, list) else [given]
        if given is None:
            return None
        if not answers or not all(
            isinstance(one, str | int | float) and not isinstance(one, bool) and plain(str(one)) for one in answers
        ):
            raise UserError(
                f"metadata {self.answer!r} is {given!r}; a string or a number, or a list of them, is needed."
            )
        return answers

    def _choices(self, metadata: Any) -> list[Any]:
        """Raises UserError for what is not a list of them."""
        given = None if self.choices is None else metadata.get(self.choices)
        if not isinstance(given, list | None) or not all(
            isinstance(one, str | int | float) and not isinstance(one, bool) for one in given or []
        ):
            raise UserError(f"metadata {self.choices!r} is {given!r}; a list of strings or numbers is needed.")
        return given or []


def plain(text: str) -> str:
    """Text as it is compared: one form of each character, small letters, single spaces, no punctuation around it."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(_AROUND)


@dataclass(frozen=True)
class Number:
    """What a text says that is nothing but a number."""

    value: float
    percent: bool


def number(text: str) -> Number | None:
    """The number that a text is, with punctuation around it or without; None for any other text."""
    found = _NUMBER.fullmatch(unicodedata.normalize("NFKC", text).replace("−", "-"))
    if found is None or not any(map(str.isdigit, found[1])):
        return None
    return Number(float(found[1].replace(",", "")), found[2] is not None)


def _share(number: Number) -> float:
    return 0.01 if number.percent else 1.0


def _chosen(said: str, choices: Sequence[Any]) -> str:
    """The choice that a letter at the beginning stands for; the text itself where it stands for none, or is one."""
    letter = _LETTER.match(said)
    if letter is None or plain(said) in [plain(str(choice)) for choice in choices]:
        return said
    place = ord(letter[1].upper()) - ord("A")
    return str(choices[place]) if place < len(choices) else said
