"""Words that were read against words asked for: matched, malformed, missing, extra. Pure functions."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SIMILAR = 0.5
"""from which likeness on a word that was read is a malformed one of those asked for, and not another"""


@dataclass(frozen=True)
class WordMatch:
    """All words of one image, each once."""

    matched: tuple[str, ...]
    malformed: tuple[tuple[str, str], ...]
    """asked for, read"""
    missing: tuple[str, ...]
    extra: tuple[str, ...]

    @property
    def words(self) -> int:
        """Asked for."""
        return len(self.matched) + len(self.malformed) + len(self.missing)

    @property
    def accuracy(self) -> float:
        """Of CVTG (arXiv:2503.23461): matched words per word asked for."""
        return len(self.matched) / self.words


def words_of(text: str) -> list[str]:
    """The words of a text, without case and without all that is neither letter nor digit; of scripts that set no
    spaces, each character."""
    words: list[str] = []
    for part in unicodedata.normalize("NFKC", text).casefold().split():
        word = ""
        for character in part:
            if unicodedata.east_asian_width(character) in "WF" and character.isalnum():
                words += [word, character]
                word = ""
            elif unicodedata.category(character)[0] in "LMN":
                word += character
        words.append(word)
    return [word for word in words if word]


def match_words(targets: Sequence[str], read: Sequence[str]) -> WordMatch:
    """Equal words first, each once; of the others, pairs that are alike enough, chosen so that their likeness adds up
    to the most. Likeness: 1 − edit distance / length of the longer. targets: at least one word."""
    from rapidfuzz.distance import Levenshtein
    from scipy.optimize import linear_sum_assignment

    equal = Counter(targets) & Counter(read)
    left, spare = (sorted((Counter(words) - equal).elements()) for words in (targets, read))
    likeness = np.array([[Levenshtein.normalized_similarity(a, b) for b in spare] for a in left])
    likeness = likeness.reshape(len(left), len(spare))  # where one of them is empty
    likeness[likeness < SIMILAR] = 0.0
    pairs = [(a, b) for a, b in zip(*linear_sum_assignment(-likeness), strict=True) if likeness[a, b] > 0]
    asked, given = {a for a, _ in pairs}, {b for _, b in pairs}
    return WordMatch(
        tuple(sorted(equal.elements())),
        tuple((left[a], spare[b]) for a, b in pairs),
        tuple(word for a, word in enumerate(left) if a not in asked),
        tuple(word for b, word in enumerate(spare) if b not in given),
    )
