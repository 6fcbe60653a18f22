"""How near a text that was read is to the texts asked for: an edit distance, blind to what a reader cannot see."""

import unicodedata
from collections.abc import Sequence
from itertools import permutations

MAX_PERMUTED = 6  # 720 orders; of more texts only the likely ones are tried
_PLAIN = str.maketrans("‘’‚‛′“”„‟″‐‑‒–—―−", "'''''" + '"""""' + "-------")


def normalize(text: str) -> str:
    """Without white space and case, with plain quotation marks and dashes, and in Unicode's NFKC form: full-width
    letters and marks equal the plain ones."""
    plain = unicodedata.normalize("NFKC", text.translate(_PLAIN))  # first: NFKC would make two marks of a double prime
    return "".join(plain.casefold().split())


def text_score(readings: Sequence[str], targets: Sequence[str], any_order: bool = False) -> float:
    """1 − min(d, n) / n, from 0 to 1: d is the edit distance between what was read and the targets joined, n the length
    of these, all normalised. What was read beyond the targets costs as many edits as it has characters.

    Args:
        readings: the same text in one or several orders of reading; the nearest counts.
        targets: the texts asked for, not all blank.
        any_order: whether the targets may come in any order: the nearest counts. Beyond 6 targets these are only the
            given order and the one in which they seem to occur.
    """
    distance, length = text_distance(readings, targets, any_order)
    return 1 - min(distance, length) / length


def text_distance(readings: Sequence[str], targets: Sequence[str], any_order: bool = False) -> tuple[int, int]:
    """d and n of `text_score`, characters."""
    from rapidfuzz.distance import Levenshtein

    readings = dict.fromkeys(normalize(reading) for reading in readings)
    targets = [target for target in map(normalize, targets) if target]
    length = sum(map(len, targets))
    if length == 0:
        raise ValueError("the targets are blank; there is nothing to compare with.")
    orders = {reading: _orders(reading, targets) if any_order else ["".join(targets)] for reading in readings}
    return min(Levenshtein.distance(reading, order) for reading in readings for order in orders[reading]), length


def _orders(reading: str, targets: list[str]) -> list[str]:
    """The targets joined in different orders."""
    if len(targets) <= MAX_PERMUTED:
        return list(dict.fromkeys("".join(order) for order in permutations(targets)))
    from rapidfuzz.fuzz import partial_ratio_alignment

    def place(target: str) -> int:  # where the part of the reading that is most like the target starts
        if len(target) <= len(reading):
            return partial_ratio_alignment(target, reading).dest_start
        return 0

    return ["".join(targets), "".join(sorted(targets, key=place))]
