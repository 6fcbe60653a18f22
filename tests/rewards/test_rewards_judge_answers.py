"""From a judge's words to a number: what is read, what is refused, and the expectation over log-probabilities."""

import json
import math
import random
import time

import pytest

from rewards.judge.answers import can_take_expectation, expected_rating, read_json_rating, read_labelled
from rewards.judge.completion import Completion, Unreadable
from rewards.judge.vlm_judge import VLMJudge
from uniar.errors import UserError

SCALE = (1.0, 5.0)


def read(answer, label="Score", scale=SCALE):
    return read_labelled(answer, label, scale).value


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("Score: 4", 4),
        ("score:4.", 4),
        ("SCORE = 4", 4),
        ("Score: 4/5", 4),
        ("Score: 4 / 5 points", 4),
        ("Score: 4 out of 5", 4),
        ("**Score:** 4", 4),
        ("**Score**: **4**", 4),
        ("Score (1-5): 4", 4),
        ("Score (1 = worst, 5 = best): 2.5", 2.5),
        ("Score: 4.", 4),
        ("Score: 4\n\nBecause of its light.", 4),
        ("Score: 4, or so it seems", 4),
        ("At first I thought Score: 2. But the roof is red.\nScore: 5", 5),
        ("Score: +3", 3),
        ("- **Score:** 3 stars", 3),
        ("Score: 4 of 5", 4),
        ("Score: 4 (out of 5)", 4),
        ("| Score: 4 |", 4),
        ("Score: **4**/5", 4),
        ("<answer>Score: 4</answer>", 4),
        ("Score: 4 (all of it)", 4),
        ("Score: 4 because of its light", 4),
        ("Score: 4. All the dogs are there.", 4),
        ("Score: 4 (four)\n\nIt is sharp; hence 4.", 4),
        ("At first 3, then five, in the end:\nScore: 4", 4),
        ("Composition Score: 2\nScore: 4", 4),
        ("I would not call it Score: 2. Score: 4", 4),
        ('The sign says "Score: 5", as asked.\nScore: 2', 2),
        ("Score: 4. Once more, Score: 4", 4),
        ("评分，Score：4分，因为很好", 4),
        ("Score: 4分", 4),
    ],
)
def test_a_labelled_number_is_read(answer, value):
    assert read(answer) == value


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("", "has no Score"),
        ("I cannot judge images.", "has no Score"),
        ("Score: four", "has no Score"),
        ("Score: N", "has no Score"),
        ("Score: NaN", "has no Score"),
        ("Underscore: 4", "has no Score"),
        ("Score: ４", "has no Score"),
        ("Score: between 3 and 4", "has no Score"),
        ("Score: not 4", "has no Score"),
        ("The judge before me said 'Score: 5'.", "has no Score"),
        ("I don't think it deserves Score: 4", "has no Score"),
        ("Score: 4\nScore: unsure", "has no Score"),
        *[
            (f"Score: {rating}", "is not one number")
            for rating in (
                *("4-5", "1 to 5", "4e1", "4th", "4,5", "4, 5", "4 or 5", "4 and 5", "4 of the 5", "4/5/10", "1.2.3"),
                *(
                    "4 or five",
                    "4 or higher",
                    "4, or five",
                    "4, maybe 5",
                    "4, not five",
                    "4 and a half",
                    "4½",
                    "4²",
                    "44４"[1:],
                ),
                *("4+", "4-", "4-ish", "4%", "4 percent", "4 dogs", "4?", "4? No, 3.", "4 would be too much", "4 × 2"),
                *(
                    "4. On second thought, 3.",
                    "4. Actually, make that 3.",
                    "4, no wait, five",
                    "4, less one for colour",
                ),
                *("4\n\nCorrection: 3", "4\nActually, 3.", "4\n\nFinal answer: 2", "4. All 3 dogs are there."),
                *("4\n" + "It is sharp. " * 90 + "\nOr rather Five.", "4\n更正：三", "4. Minus a half.", "4\n- 2.5"),
                *("4. 5 would be too much", "4. Or 5.", "4 — no, 3", "4 (or 3)", "4 to five", "4 on a scale to 10"),
            )
        ],
        ("Score: 2\nScore: 4", "more than one Score"),
        ("Score: 2; Score: 4", "more than one Score"),
        ("Score: 4\nConfidence Score: 2", "more than one Score"),
        ("Score: 0", "Score is 0, the scale is 1 to 5"),
        ("Score: 6", "Score is 6, the scale is 1 to 5"),
        ("Score: -4", "Score is -4"),
        ("Score: 44", "Score is 44"),
        ("Score: 4/10", "is out of 10, the scale ends at 5"),
        ("Score: 4 (out of 10)", "is out of 10"),
        ("Score: 4 out of 10", "is out of 10"),
    ],
)
def test_no_number_is_guessed(answer, message):
    with pytest.raises(Unreadable, match=message):
        read(answer)


def test_labels_of_several_words_are_told_apart():
    answer = "Style Score (1-5): 3\nOverall  Style\nScore: 2\nCoherence Score: 5"
    assert read(answer, "Coherence Score") == 5
    assert read_labelled(answer, "Overall Style Score", SCALE, ["Coherence Score"]).value == 2
    assert read("Style Score: 3\nStyle\nNote: fine", "Style Score") == 3
    with pytest.raises(Unreadable, match="more than one Style Score"):
        read(answer, "Style Score")  # which of the two is meant?
    line = "Alignment Score: 4, Style Score: 3; Coherence Score: 2"
    for label, value in (("Alignment Score", 4), ("Style Score", 3), ("Coherence Score", 2)):
        others = {"Alignment Score", "Style Score", "Coherence Score"} - {label}
        assert read_labelled(line, label, SCALE, sorted(others)).value == value
        assert read_labelled(line.replace(", ", "/5\n"), label, SCALE, sorted(others)).value == value
        with pytest.raises(Unreadable, match="is not one number"):
            read_labelled(f"{line}\nActually, 1.", label, SCALE, sorted(others))


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ('{"Score": 4}', 4),
        ('```json\n{"why": "a {brace}", "Score": 4.5}\n```', 4.5),
        ('{"Score": "3"}', 3),
        ('{"result": {"Score": 2}}', 2),
        ('{"Score": 5} again: {"Score": 5}', 5),
        ('{"Score": 2, "parts": {"Score": "2"}}', 2),
        ('I think { so: {"Score": 3}', 3),
    ],
)
def test_json_is_read_wherever_it_stands(answer, value):
    rating = read_json_rating(answer, "Score", SCALE)
    assert rating.value == value
    if rating.end > rating.start:
        assert float(answer[rating.start : rating.end]) == value


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("Score: 4", "no JSON object with the key 'Score'"),
        ('{"score": 4}', "no JSON object with the key 'Score'"),
        ('{"Score": 4', "no JSON object"),
        ('{"Score": null}', "'Score' is 'null', which is not a number"),
        ('{"Score": true}', "which is not a number"),
        ('{"Score": [4]}', "which is not a number"),
        ('{"Score": "4/5"}', "which is not a number"),
        ('{"Score": 1} no, {"Score": 5}', "more than one 'Score'"),
        ('{"Score": 1, "Score": 5}', "more than one 'Score'"),
        ('{"a": {"Score": 2}, "b": {"Score": 4}}', "more than one 'Score'"),
        ('{"Score": 4, "draft": {"Score": 2}}', "more than one 'Score'"),
        ('{"drafts": [{"Score": 2}, [{"Score": 3}]], "Score": 4}', "more than one 'Score'"),
        ('{"Score": 1, "draft": {"Score": true}}', "which is not a number"),
        ('{"Score": 1' + "0" * 400 + "}", "'Score' is inf"),
        ('{"Score": "4 or 5"}', "which is not a number"),
        ('{"Score": {"low": 3, "high": 4}}', "which is not a number"),
        ('{"Score": NaN}', "'Score' is nan, the scale is 1 to 5"),
        ('{"Score": 1e999}', "'Score' is inf"),
        ('{"Score": 9}', "'Score' is 9"),
        ("{" * 10_000, "has 10000 opening braces, 1000 at most are read"),
        ('{"Score":' * 5_000, "opening braces"),
    ],
)
def test_json_that_says_no_number_is_refused(answer, message):
    with pytest.raises(Unreadable, match=message):
        read_json_rating(answer, "Score", SCALE)


# The expectation -----------------------------------------------------------------------------------------------------


def token(text, **alternatives):
    """An entry of `logprobs.content`: its text, and the probabilities of what could have stood there."""
    entries = [
        {"token": other, "logprob": math.log(p), "bytes": list(other.encode())} for other, p in alternatives.items()
    ]
    own = alternatives.get(text, 1.0)
    return {"token": text, "logprob": math.log(own), "bytes": list(text.encode()), "top_logprobs": entries}


def expected(answer, tokens, scale=SCALE, reasoning=""):
    return expected_rating(read_labelled(answer, "Score", scale), Completion(answer, reasoning, tokens), scale)


def test_the_expectation_is_the_mean_over_the_digits_of_the_scale():
    generator = random.Random(0)
    for _ in range(200):
        chances = {str(digit): generator.random() for digit in range(10)}
        chances["good"] = generator.random()
        whole = sum(chances.values()) * generator.uniform(1, 2)
        chances = {text: chance / whole for text, chance in chances.items()}
        low, high = sorted(generator.sample(range(10), 2))
        written = str(generator.randint(low, high))
        tokens = [token("Score"), token(":"), token(" "), token(written, **chances), token("\n")]
        digits = range(low, high + 1)
        mean = sum(d * chances[str(d)] for d in digits) / sum(chances[str(d)] for d in digits)
        assert expected(f"Score: {written}\n", tokens, (low, high)) == pytest.approx(mean, rel=1e-12)


def test_digits_inside_longer_tokens():
    """Some vocabularies have " 4", "4." or ":4" as one token."""
    whole = {" 4": 0.5, " 3": 0.25, "4": 0.2, " 10": 0.05}  # of the others only " 3" is another rating in that place
    assert expected("Score: 4", [token("Score:"), token(" 4", **whole)]) == pytest.approx((4 * 0.5 + 3 * 0.25) / 0.75)
    dotted = {"4.": 0.6, "5.": 0.2, "5": 0.2}
    assert expected("Score: 4. Yes", [token("Score: "), token("4.", **dotted), token(" Yes")]) == pytest.approx(4.25)


def test_a_place_is_found_past_tokens_that_are_parts_of_characters():
    """画 is three bytes, here over two tokens, neither of which is a text."""
    word = "画".encode()
    parts = [{"token": "\ufffd", "bytes": list(word[:2]), "logprob": 0.0}, {"token": "\ufffd", "bytes": list(word[2:])}]
    tokens = [*parts, token(" Score"), token(": "), token("2", **{"2": 0.5, "4": 0.5})]
    assert expected("画 Score: 2", tokens) == pytest.approx(3)


def test_the_number_that_was_read_is_the_one_that_is_looked_at():
    """Not the first digit of the answer: the scale in the label, and what was said on the way, come before it."""
    tokens = [token(text) for text in ("Not", " Score", " (", "1", "-", "5", "): ", "2", "\n", "Score", ": ")]
    tokens.append(token("4", **{"4": 0.75, "5": 0.25}))
    assert expected("Not Score (1-5): 2\nScore: 4", tokens) == pytest.approx(4.25)


def test_what_a_server_strips_from_the_answer_moves_nothing():
    tokens = [token("\n"), token("Score"), token(": "), token("4", **{"4": 0.5, "2": 0.5}), token("<|im_end|>")]
    assert expected("Score: 4", tokens) == pytest.approx(3)


def test_what_was_drawn_counts_even_where_it_is_none_of_the_likeliest():
    drawn = {**token("2", **{"5": 0.9}), "logprob": math.log(0.1)}
    assert expected("Score: 2", [token("Score: "), drawn]) == pytest.approx(5 * 0.9 + 2 * 0.1)


def test_a_fraction_is_taken_as_written():
    assert expected("Score: 3.5", [token("Score: "), token("3", **{"3": 0.5, "5": 0.5}), token(".5")]) == 3.5


NONE = [
    [],
    [token("Score"), token(": 3")],  # not what the answer says
    [token("Score: "), {"token": "4", "logprob": 0.0}],  # no alternatives
    [token("Score: "), {"token": "4", "logprob": 0.0, "top_logprobs": []}],
    [token("Score: "), {"token": "4", "logprob": 5.0, "top_logprobs": [{"token": "4", "logprob": 5.0}]}],  # p = 148
    [token("Score: "), {"token": "4", "logprob": "0", "top_logprobs": ["4"]}],
    ["Score: 4"],
    [None, {"token": 4}, {"bytes": [300]}],
]


@pytest.mark.parametrize("tokens", NONE, ids=range(len(NONE)))
def test_without_log_probabilities_at_that_place_there_is_no_expectation(tokens):
    assert expected("Score: 4", tokens) is None


@pytest.mark.parametrize(
    ("scale", "possible"),
    [((1, 5), True), ((0, 9), True), ((1, 10), False), ((0, 1.5), False), ((-1, 1), False), ((0, 100), False)],
)
def test_only_single_digits_have_an_expectation(scale, possible):
    assert can_take_expectation(scale) is possible
    if not possible:
        with pytest.raises(UserError, match="expectation needs a scale of single digits"):
            VLMJudge("http://127.0.0.1:9", scale=scale, expectation=True)


# From an answer to a score -------------------------------------------------------------------------------------------


def rate(answer, tokens=None, **settings):
    return VLMJudge("http://127.0.0.1:9", **settings).rate(Completion(answer, "", tokens))


def test_a_rating_is_mapped_as_asked():
    assert rate("Score: 4") == 0.75  # (4 - 1) / (5 - 1)
    assert rate("Score: 4", rescale="max") == 0.8
    assert rate("Score: 4", rescale="none") == 4
    assert rate("Score: 7", scale=(0, 10)) == 0.7
    assert rate("Score: -1", scale=(-2, 2)) == 0.25


def test_a_single_rating_may_be_all_there_is():
    for answer in ("4", " 4 ", "4/5", "4.", "**4**", "4 out of 5", "4 of 5", "<answer>4</answer>", "`4`", "４"):
        assert rate(answer) == 0.75
    for answer in ("4 dogs", "4 5", "about 4", "4,5", "4 or 5", "4-5", "not 4", "between 3 and 4", "4½", "four"):
        with pytest.raises(Unreadable, match="has no Score"):
            rate(answer)
    for answer in ("4/10", "4 of 10"):
        with pytest.raises(Unreadable, match="is out of 10"):
            rate(answer)
    with pytest.raises(Unreadable, match="Score is -4"):
        rate("-4")
    assert rate("4.5") == 0.875  # a fraction on the scale is a rating


def test_unified_reward_is_the_weighted_sum_over_five():
    for align, coherence, style in [(1, 2, 3), (5, 5, 5), (4.5, 3, 1)]:
        answer = f"Alignment Score (1-5): {align}\nCoherence Score (1-5): {coherence}\nStyle Score (1-5): {style}"
        score = rate(answer, preset="unified_reward")
        assert score == pytest.approx((0.4 * align + 0.4 * coherence + 0.2 * style) / 5, rel=1e-12)
    with pytest.raises(Unreadable, match="has no Style Score"):
        rate("Alignment Score: 3\nCoherence Score: 3", preset="unified_reward")


def test_what_is_given_besides_a_preset_wins():
    judge = VLMJudge(
        "http://127.0.0.1:9", preset="unified_reward", scale=(0, 9), rescale="range", prompt="Rate {prompt}."
    )
    assert (judge.scale, judge.rescale, judge.prompt) == ((0, 9), "range", "Rate {prompt}.")
    assert list(judge.ratings) == ["Alignment Score", "Coherence Score", "Style Score"]


def test_several_ratings_each_have_their_own_expectation():
    answer = json.dumps({"a": 2, "b": 4})
    tokens = [token('{"a": '), token("2", **{"2": 0.5, "4": 0.5}), token(', "b": '), token("4", **{"4": 0.5, "5": 0.5})]
    tokens.append(token("}"))
    settings = {"ratings": {"a": 1.0, "b": 10.0}, "parser": "json", "rescale": "none"}
    assert rate(answer, tokens, **settings) == pytest.approx(3 + 45)
    assert rate(answer, tokens, expectation=False, **settings) == 2 + 40


def test_an_expectation_that_is_insisted_on():
    tokens = [token("Score: "), token("4", **{"4": 0.5, "2": 0.5})]
    assert rate("Score: 4", tokens, expectation=True) == pytest.approx(0.5)
    assert rate("Score: 4", None) == 0.75
    for missing in (None, [], NONE[1]):
        with pytest.raises(Unreadable, match="the server returned no log-probabilities for the judge's Score"):
            rate("Score: 4", missing, expectation=True)


def test_a_pattern_of_ones_own():
    assert rate("verdict <3>", pattern=r"<(\d)>") == 0.5
    with pytest.raises(Unreadable, match="which is not a number"):
        rate("verdict <x>", pattern=r"<(\w)>")
    with pytest.raises(Unreadable, match="which is not a number"):
        rate("verdict <>", pattern=r"<(\d)?>")
    for answer in ("verdict: 14", "verdict: 4,5", "verdict: 4 or 5", "verdict: -4", "verdict: 4.5"):
        with pytest.raises(Unreadable, match="is not one number"):
            rate(answer, pattern=r"verdict:.*?(\d)")
    with pytest.raises(Unreadable, match="more than one Score"):
        rate("<3> <4>", pattern=r"<(\d)>")


def test_an_endless_answer_is_not_searched():
    with pytest.raises(Unreadable, match="has 100001 characters"):
        rate("4" * 100_001)


@pytest.mark.parametrize(
    "answer", ["Score" + "*" * 99_000, "4" + " " * 99_000 + "x", "Score(" * 16_000, '{"Score":' * 11_000]
)
def test_no_answer_takes_long_to_read(answer):
    started = time.process_time()
    for parser in ("text", "json"):
        with pytest.raises(Unreadable):
            rate(answer, parser=parser)
    assert time.process_time() - started < 5
