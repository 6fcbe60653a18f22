"""Judges that think before they answer: their thinking is never the answer, nor are its tokens the answer's."""

import json
import math

import pytest

from rewards.judge.completion import Completion, Unreadable, place_in_tokens, read_completion, start_of_answer
from rewards.judge.vlm_judge import VLMJudge

THOUGHT = "The form is Score: N. At first Score: 2, with 1 to 5 in mind.\nScore: 2\n"

UNFINISHED = r"thinking has no end|empty after its thinking"

ALOUD = [
    "<think>{}</think>\n\n{}",
    "{}</think>\n{}",  # the chat template has written the first mark
    "<think>\n\n</think>\n\n<think>{}</think>{}",
    "<thinking>{}</thinking>\n{}",
    "<THINK>{}</THINK>\n{}",
    '<think effort="high">{}</think>\n{}',
    "<thought>{}</thought>\n<answer>{}</answer>",
    "<reasoning>{}</reasoning>\n{}",
    "<seed:think>{}</seed:think>{}",
    "<|START_THINKING|>{}<|END_THINKING|>{}",
    "<|begin_of_thought|>{}<|end_of_thought|>\n<|begin_of_solution|>\n{}\n<|end_of_solution|>",
    "[THINK]{}[/THINK]{}",
    "◁think▷{}◁/think▷{}",
    "<unused94>thought\n{}<unused95>{}",
    "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>",
    "analysisWe see: {}assistantfinal{}",
    "Here is my thought process: {}\nHere is my response: \n{}",
    "<think>what is </think>? {}</think>\n{}",
]


def tokens_of(text, unsure=None):
    """A token a character. `unsure`: the place of a digit that could as well have been another."""
    tokens = []
    for place, character in enumerate(text):
        chances = {character: 0.31, "2": 0.69} if character in "45" else {character: 1.0}
        chances = {"4": 0.75, "5": 0.25} if place == unsure else chances
        top = [{"token": other, "logprob": math.log(p)} for other, p in chances.items()]
        tokens.append({"token": character, "logprob": math.log(chances.get(character, 1.0)), "top_logprobs": top})
    return tokens


def rate(content, reasoning="", tokens=None, **settings):
    judge = VLMJudge("http://127.0.0.1:9", **{"rescale": "none", **settings})
    return judge.rate(Completion(content, reasoning, tokens))


@pytest.mark.parametrize("answer", ["Score: 4", "4", "It is fine.\nScore: 4/5"])
@pytest.mark.parametrize("form", ALOUD)
def test_thinking_aloud_is_not_read(form, answer):
    content = form.format(THOUGHT, answer)
    assert rate(content) == 4
    place = content.rindex("4")
    tokens = tokens_of(content + "<|im_end|>", unsure=place)
    assert rate(content, tokens=tokens, expectation=True) == pytest.approx(4.25)
    stripped = content.strip() + " "
    assert rate(stripped, tokens=tokens, expectation=True) == pytest.approx(4.25)


@pytest.mark.parametrize("form", ALOUD)
def test_a_json_answer_after_thinking(form):
    content = form.format('{"Score": 2}', '{"Score": 4}')
    assert rate(content, parser="json") == 4
    assert rate(content, tokens=tokens_of(content, content.rindex("4")), parser="json") == pytest.approx(4.25)


@pytest.mark.parametrize(
    "content",
    [
        "<think>Score: 4",
        "<think>Score: 4</think>",
        "<think>Score: 2</think> \n ",
        "<think>a</think> Score: 2 <think> no, Score: 4",
        "Score: 2 <thinking>",
        "[THINK]Score: 4",
        "<|channel|>analysis<|message|>Score: 4",
        "<|channel|>final<|message|>Score: 2<|end|><|start|>assistant<|channel|>analysis<|message|>Score: 4",
        "analysisI say Score: 4",
        "<|START_THINKING|>Score: 4",
        "<unused94>thought\nScore: 4",
        "Here's my thought process: Score: 4",
    ],
)
def test_thinking_without_an_answer_has_no_score(content):
    with pytest.raises(Unreadable, match=UNFINISHED):
        rate(content)
    with pytest.raises(Unreadable, match=UNFINISHED):
        rate(content, parser="json")


@pytest.mark.parametrize(
    "content", ["Score: 4", "Analysis: it is fine.\nScore: 4", "a <b> c\nScore: 4", "[1] Score: 4"]
)
def test_what_is_not_thinking_stays(content):
    assert start_of_answer(content) == 0
    assert rate(content) == 4


# In a field of its own -----------------------------------------------------------------------------------------------


def body(message, reason="stop", tokens=None):
    choice = {"message": message, "finish_reason": reason, "logprobs": tokens and {"content": tokens}}
    return json.dumps({"choices": [choice]}).encode()


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_thinking_aside_is_not_read_and_its_tokens_are_not_the_answers(field):
    """As servers with a reasoning parser have it: the tokens of both, one after the other."""
    spelt = f"<think>{THOUGHT}</think>\n\nScore: 4<|im_end|>"
    tokens = tokens_of(spelt, unsure=spelt.rindex("4"))
    completion = read_completion(body({"content": "\n\nScore: 4", field: THOUGHT}, tokens=tokens))
    assert rate(completion.content, completion.reasoning, completion.tokens) == pytest.approx(4.25)
    # Without the marks, which a server may leave out as special tokens.
    spelt = f"{THOUGHT}Score: 4"
    tokens = tokens_of(spelt, unsure=spelt.rindex("4"))
    assert rate("Score: 4", THOUGHT, tokens, expectation=True) == pytest.approx(4.25)


def test_parts_of_a_message():
    parts = [{"type": "thinking", "thinking": [{"text": "Score: 2"}]}, {"type": "text", "text": "Score: 4"}]
    assert rate(read_completion(body({"content": parts})).content) == 4
    with pytest.raises(Unreadable, match="is empty"):
        read_completion(body({"content": parts[:1]}))


def test_log_probabilities_of_the_thinking_alone_are_none_of_the_answer():
    spelt = "I would say\nScore: 4"
    for reasoning in ("", "something else"):
        assert place_in_tokens(Completion("Score: 4", reasoning, tokens_of(spelt))) is None
        assert rate("Score: 4", reasoning, tokens_of(spelt)) == 4  # as it was written
        with pytest.raises(Unreadable, match="no log-probabilities"):
            rate("Score: 4", reasoning, tokens_of(spelt), expectation=True)


@pytest.mark.parametrize("after", [" 5", "\nScore: 2", "</think>4"])
def test_tokens_that_go_on_after_the_answer_do_not_spell_it(after):
    assert place_in_tokens(Completion("Score: 4", "", tokens_of("Score: 4" + after))) is None


@pytest.mark.parametrize("reason", ["length", "content_filter", "abort", "error", "tool_calls"])
def test_an_answer_that_did_not_come_to_its_end_has_no_score(reason):
    with pytest.raises(Unreadable, match=r"cut at max_tokens|ended by"):
        read_completion(body({"content": "Score: 4"}, reason))


@pytest.mark.parametrize("reason", ["STOP", " Stop ", "FINISH_REASON_STOP", "STOP_SEQUENCE", "COMPLETE", None, ""])
def test_an_answer_that_came_to_its_end_in_other_words(reason):
    assert read_completion(body({"content": "4"}, reason)).content == "4"


@pytest.mark.parametrize("reason", ["LENGTH", "MAX_TOKENS", "max_output_tokens"])
def test_an_answer_that_was_cut_in_other_words(reason):
    with pytest.raises(Unreadable, match="was cut at max_tokens"):
        read_completion(body({"content": "4"}, reason))


@pytest.mark.parametrize(
    ("parts", "content"),
    [
        (["Score: ", "4"], "Score: 4"),
        ([{"text": "Score: 4"}], "Score: 4"),
        ([{"type": "text", "text": "4"}, {"type": "text", "text": "5"}], None),
        ([{"type": "text", "text": "4."}, {"type": "text", "text": "5"}], None),
        ([{"type": "text", "text": {"value": "4"}}], None),
        ([{"type": "text", "text": None}, {"type": "text", "text": "4"}], None),
        ([7, "4"], "4"),
    ],
)
def test_parts_are_joined_where_that_makes_no_other_number(parts, content):
    if content is None:
        with pytest.raises(Unreadable, match=r"not text|within a number"):
            read_completion(body({"content": parts}))
    else:
        assert read_completion(body({"content": parts})).content == content


@pytest.mark.parametrize(
    "answer",
    [
        *("4 out of five", "Score: 4 out of five", "Score: 4 (out of five)", "Score: 4 stars out of 5", "4/five"),
        *("4分", "4 点", "Score：４／５", "４", "4️⃣", "✅ 4", "Score: 4⭐", "Score: 4/5 👍🏽", "⭐ Score: 4 ⭐"),
        *("Score:\u200b4", "\ufeff4\u2060", "Score: \u202a4\u202c", "Score:\u00a04\u00a0"),
        *("| Score | 4 |", "| **Score** | **4** | it is sharp |", "|Score (1-5)|4/5|\n|---|---|"),
        *("1. Score: 4", "1. The dogs: good\n2. Score: 4\n3. Advice: crop it", "Score: 4\n1. Sharp\n2. Bright"),
    ],
)
def test_ornaments_units_lists_and_tables(answer):
    assert rate(answer) == 4


@pytest.mark.parametrize(
    "answer",
    [
        *("4 out of six", "Score: 4 of ten", "4/six", "4 or five", "four", "4 of", "Score: ⭐⭐⭐⭐", "4🔟", "➖4"),
        *("4\u200b5", "Score: 3 ➡️ 4", "Score: 3\u200b/\u200b4", "４，５", "Score: 4½", "Score: 4²"),
        *("| Score | 1-5 | 4 |", "| Score | 5 | 4 |", "| Score |\n|---|", "| Score | 4 | 5 |", "| Score | 4 dogs |"),
        *("1. 4\n2. 3", "1. 4", "1. Score: 4\n2. Score: 3", "Score: 4\n5. Actually", "Score: 4\n1. 3\n2. 2"),
    ],
)
def test_ornaments_are_no_reason_to_guess(answer):
    with pytest.raises(Unreadable):
        rate(answer)


def test_ratings_in_a_numbered_list_or_a_table_are_told_apart():
    ratings = {"Alignment": 1.0, "Style": 0.0}
    for answer in (
        "1. Alignment: 4\n2. Style: 2",
        "| Alignment | 4 |\n| Style | 2 |",
        "**1. Alignment**: 4\n2) Style: 2",
    ):
        assert rate(answer, ratings=ratings) == 4


def test_an_ornament_moves_no_place_of_the_log_probabilities():
    answer = "⭐ 1. Score: 4"
    assert rate(answer, tokens=tokens_of(answer, unsure=len(answer) - 1)) == pytest.approx(4.25)
