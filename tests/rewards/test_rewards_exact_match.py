"""`exact_match`: one right answer in many spellings, and what is none."""

import pytest

from rewards import RewardBatch, RewardSuite
from uniar.errors import UserError

CHOICES = ["a cat", "a dog"]


def score(text, answer, choices=None, **parameters):
    metadata = {"answer": answer} if choices is None else {"answer": answer, "choices": choices}
    batch = RewardBatch(["q"], [None], metadata=[metadata], texts=[["a first turn", text]])
    table = RewardSuite.from_recipe([{"use": "exact_match", **parameters}]).score(batch)
    return table.values.item()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" Red.\n", "red"),
        ("**Red**", "red"),
        ("“Zürich”", "zürich"),
        ("ﬁve", "five"),
        ("a  red\tdog", "A red dog"),
        ("3.0", 3),
        ("3", "3.00"),
        ("1,200", "1200"),
        ("1e3", 1000),
        ("−2", -2),
        (".5", 0.5),
        ("50%", 0.5),
        ("50%", 50),
        ("50 %", "50%"),
        ("-3.0.", -3),
        ("-1,200.", -1200),
        ("-3.0**", -3),
        ("(.5)", 0.5),
        ("３", 3),
        ("dog", ["cat", "dog"]),
        ("2", ["two", 2]),
        ("<think>it is 4</think>\n3", 3),
    ],
)
def test_right(text, answer):
    assert score(text, answer) == 1


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", "red"),
        ("...", "red"),
        ("not red", "red"),
        ("red or blue", "red"),
        ("12", 1),
        ("2", -2),
        ("1,20", 120),
        (".5", 5),
        ("1%", "100%"),
        ("1%", 100),
        ("50%", "0.5%"),
        ("-", "-1"),
        ("3 dogs", 3),
        ("4</think>", 4),
        ("nan", "0"),
        ("three", 3),
    ],
)
def test_wrong(text, answer):
    assert score(text, answer) == 0


@pytest.mark.parametrize("answer", ["B", "a dog"])
@pytest.mark.parametrize(
    ("text", "right"),
    [
        *((text, 1) for text in ("B", "b", "(B)", "B.", "B) a dog", "B: a dog", "**B**", "a dog", "A dog")),
        *((text, 0) for text in ("A", "C", "Because", "a cat", "B A", "A dog and a cat", "AB")),
    ],
)
def test_a_letter_stands_for_a_choice(text, right, answer):
    assert score(text, answer, CHOICES) == right


def test_tolerance_is_a_share_of_the_right_number():
    assert [score(text, 100, tolerance=0.02) for text in ("98", "102", "97.9", "102.1")] == [1, 1, 0, 0]
    assert score("-98", -100, tolerance=0.02) == 1
    assert score("0.01", 0, tolerance=0.02) == 0


def test_a_pattern_takes_the_last_match_and_nothing_else():
    pattern = "<answer>(.*?)</answer>"
    assert score("<answer>4</answer>, no:\n<answer> 5\n</answer>", 5, pattern=pattern) == 1
    assert score("5", 5, pattern=pattern) == 0


def test_samples_it_does_not_apply_to():
    batch = RewardBatch(
        ["q"] * 3, [None] * 3, metadata=[{"answer": "a"}, {}, {"answer": None}], texts=[[], ["a"], ["a"]]
    )
    table = RewardSuite.from_recipe(["exact_match"]).score(batch)
    assert table.values.isnan().all()
    assert not table.failed.any()


def test_details_say_what_was_compared():
    batch = RewardBatch(["q"], [None], metadata=[{"answer": [2, "two"]}], texts=[["<think>hm</think> 3. "]])
    table = RewardSuite.from_recipe(["exact_match"]).score(batch)
    assert table.details["exact_match"] == [{"said": "3.", "right": ["2", "two"]}]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"tolerance": -0.1}, "tolerance is -0.1; a share"),
        ({"pattern": "("}, "'\\(' is not a regular expression"),
        ({"pattern": "a"}, "'a' has no group"),
    ],
)
def test_parameters_that_cannot_work_are_refused(parameters, message):
    with pytest.raises(UserError, match=message):
        RewardSuite.from_recipe([{"use": "exact_match", **parameters}])


@pytest.mark.parametrize("answer", [[], [None], True, {"a": 1}, "...", [["a"]]])
def test_what_is_no_answer_is_found_before_anything_is_loaded(answer):
    reward = RewardSuite.from_recipe(["exact_match"]).rewards[0]
    with pytest.raises(UserError, match=r"metadata 'answer' is .*; a string or a number, or a list of them, is needed"):
        reward.check_sample("q", {"answer": answer})


@pytest.mark.parametrize("choices", [{"A": "cat"}, "ab", 3, [None], [["a"]], [True]])
def test_what_are_no_choices_is_found_before_anything_is_loaded(choices):
    reward = RewardSuite.from_recipe(["exact_match"]).rewards[0]
    with pytest.raises(UserError, match=r"metadata 'choices' is .*; a list of strings or numbers is needed"):
        reward.check_sample("q", {"answer": "a", "choices": choices})
