"""`text_rendering` on rendered text; its matching of words against a search through all pairings."""

import random
from itertools import permutations

import pytest
from PIL import Image, ImageDraw, ImageFont

from rewards import RewardBatch, RewardSuite
from rewards.ocr.text_rendering import TextRendering
from rewards.ocr.words import SIMILAR, match_words, words_of
from uniar.errors import UserError


def distance(a: str, b: str) -> int:
    """Levenshtein's, by its recursion."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1]


def best_likeness(targets: list[str], read: list[str]) -> float:
    """The largest sum of likenesses of at least SIMILAR that any pairing has."""
    if len(targets) > len(read):
        targets, read = read, targets
    best = 0.0
    for chosen in permutations(read, len(targets)):
        likeness = [1 - distance(a, b) / max(len(a), len(b)) for a, b in zip(targets, chosen, strict=True)]
        best = max(best, sum(one for one in likeness if one >= SIMILAR))
    return best


def test_words_are_matched_as_well_as_any_pairing_could():
    generator = random.Random(0)
    for _ in range(60):
        targets, read = (
            ["".join(generator.choices("abc", k=generator.randint(1, 4))) for _ in range(generator.randint(1, 4))]
            for _ in range(2)
        )
        match = match_words(targets, read)
        matched = sum(min(targets.count(word), read.count(word)) for word in {*targets})  # CVTG's count
        assert (len(match.matched), match.accuracy) == (matched, matched / len(targets))
        assert match.words == len(targets)
        assert len(match.matched) + len(match.malformed) + len(match.extra) == len(read)
        rest = [
            sorted(match.missing) + [a for a, _ in match.malformed],
            sorted(match.extra) + [b for _, b in match.malformed],
        ]
        found = sum(1 - distance(a, b) / max(len(a), len(b)) for a, b in match.malformed)
        assert found == pytest.approx(best_likeness(*rest))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Fresh Brews, EVERY morning!", ["fresh", "brews", "every", "morning"]),
        ("don't  —  stop 24/7", ["dont", "stop", "247"]),
        ("欢迎光临 OPEN", ["欢", "迎", "光", "临", "open"]),
        ("... !", []),
        ("ＯＰＥＮ straße", ["open", "strasse"]),
    ],
)
def test_words_are_without_case_and_punctuation(text, words):
    assert words_of(text) == words


def written(text):
    image = Image.new("RGB", (448, 192), "white")
    ImageDraw.Draw(image).text((24, 40), text, font=ImageFont.load_default(size=44), fill="black")
    return image


@pytest.fixture(scope="module")
def reward():
    return TextRendering(threads=1)


def test_what_is_missing_malformed_and_extra_is_told_apart(reward):
    asked = [["FRESH BREAD", "DAILY"], "FRESH BREAD DAILY", "FRESH", "BREAD"]
    drawn = ["FRESH BREAD\nDAILY", "FRESH BROAD", "FRESH FRESH", ""]
    batch = RewardBatch(["p"] * 4, [written(text) for text in drawn], metadata=[{"text": text} for text in asked])
    whole, part, double, none = reward.score(batch)
    assert (whole["score"], whole["edit_distance"], whole["why"]) == (1.0, 0, "all there")
    counts = {name: part[name] for name in ("score", "matched", "words", "missing", "malformed", "extra")}
    assert counts == {"score": pytest.approx(1 / 3), "matched": 1, "words": 3, "missing": 1, "malformed": 1, "extra": 0}
    assert part["edit_distance"] == 6  # one letter, and five of a word
    assert part["why"] == "missing daily; malformed broad for bread"
    assert (double["score"], double["extra"], double["why"]) == (1.0, 1, "extra fresh")
    assert (none["score"], none["missing"], none["edit_distance"]) == (0.0, 1, 5)


def test_extra_words_may_cost_and_malformed_ones_count(reward):
    costly = TextRendering(extra_cost=0.5, malformed_credit=0.5, threads=1)
    costly.ocr = reward.ocr  # whose models are loaded
    images = [written(text) for text in ("FRESH OPEN", "FRESH BROAD", "X")]
    found = costly.score(RewardBatch(['a "FRESH" sign', 'a "FRESH BREAD" sign', "no text"], images))
    assert [one and one["score"] for one in found] == [0.5, 0.75, None]


def test_texts_of_letters_that_the_reader_lacks_have_no_score(reward, caplog):
    found = reward.score(RewardBatch(["p"], [written("A")], metadata=[{"text": "안녕"}]))
    assert found[0]["score"] is None
    assert "the reader does not know these letters" in found[0]["why"]


@pytest.mark.parametrize("wrong", [{"extra_cost": -1.0}, {"malformed_credit": 2.0}, {"min_confidence": 2.0}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        RewardSuite.from_recipe([{"use": "text_rendering", **wrong}])
