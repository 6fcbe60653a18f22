"""`vlm_judge` with the preset imgedit: the kind of an edit decides what is asked, its first rating what counts."""

import base64
import io
import re

import pytest
from PIL import Image
from support.hostile_server import hostile_server
from support.numbered_batch import make_batch, score

from rewards import RewardSuite
from rewards.judge.completion import Completion, Unreadable
from rewards.judge.edit_criteria import EDIT_CRITERIA, criteria_of
from rewards.judge.vlm_judge import VLMJudge
from uniar.errors import UserError

MODELS = {"data": [{"id": "judge"}]}
KINDS = ["add", "adjust", "extract", "replace", "remove", "background", "style", "compose", "action"]


def asked_of(post):
    return post["messages"][0]["content"][-1]["text"]


def ratings_in(question):
    """The names of the lines that the judge is to end with."""
    return re.findall(r"(?m)^(.+): N$", question)


def answering(*numbers):
    """A judge that writes these numbers on the lines that it is asked for, after a sentence."""

    def answer(request):
        names = ratings_in(asked_of(request.content))
        lines = [f"{name}: {number}" for name, number in zip(names, numbers, strict=True)]
        text = "\n".join(["It is done, though the first picture was sharper.", *lines])
        request.send({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})

    return answer


def edits(kinds, **columns):
    pictures = [[Image.new("RGB", (4, 4), "white")] for _ in kinds]
    given = {"metadata": [{} if kind is None else {"edit_type": kind} for kind in kinds], "source_images": pictures}
    return make_batch(len(kinds), **{**given, **columns})


def suite_of(server, **parameters):
    entry = {"use": "vlm_judge", "url": f"{server.url}/v1", "name": "judge", "preset": "imgedit", **parameters}
    return RewardSuite.from_recipe([entry])


def test_each_kind_is_asked_for_its_own_three_ratings():
    with hostile_server(answering(5, 3, 4), MODELS) as server:
        table, _ = score(suite_of(server, rescale="none", concurrency=1), edits(KINDS))
    assert table.values.flatten().tolist() == [4.0] * len(KINDS)
    questions = {KINDS[int(re.search(r"prompt (\d)", text)[1])]: text for text in map(asked_of, server.posts)}
    for kind, question in questions.items():
        names = ratings_in(question)
        assert names == list(EDIT_CRITERIA[kind].ratings)
        assert all(question.count(f"- {name}: ") == 1 for name in names)
        assert EDIT_CRITERIA[kind].wish in question
        assert f"above {names[0]}" in question
    assert len(questions) == len(KINDS)


def test_it_sees_the_picture_before_and_then_the_one_after():
    batch = edits(["remove"])
    with hostile_server(answering(1, 1, 1), MODELS) as server:
        score(suite_of(server), batch)
    urls = [part["image_url"]["url"] for part in server.posts[0]["messages"][0]["content"][:-1]]
    pixels = [Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).getpixel((0, 0)) for url in urls]
    assert pixels == [(255, 255, 255), batch.images[0].getpixel((0, 0))]


@pytest.mark.parametrize(
    ("written", "counted", "uncapped"),
    [((2, 5, 4), 2.0, 11 / 3), ((4, 5, 1), 3.0, 10 / 3), ((5, 4, 3), 4.0, 4.0), ((1, 1, 1), 1.0, 1.0)],
)
def test_no_rating_counts_for_more_than_the_first(written, counted, uncapped):
    with hostile_server(answering(*written), MODELS) as server:
        table, _ = score(suite_of(server, rescale="none"), edits(["style"]))
        ranged, _ = score(suite_of(server), edits(["style"]))
    assert table.values.item() == pytest.approx(counted)
    [details] = table.details["judge"]
    assert (details["instruction"], details["uncapped"]) == (written[0], pytest.approx(uncapped))
    assert f"Content Preservation: {written[1]}" in details["why"]
    assert ranged.values.item() == pytest.approx((counted - 1) / 4)
    assert ranged.details["judge"][0]["uncapped"] == pytest.approx((uncapped - 1) / 4)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_in_the_form_that_is_asked_for_is_read_number_by_number(kind):
    names = list(EDIT_CRITERIA[kind].ratings)
    text = "\n".join(f"**{name}**: {number}/5" for name, number in zip(names, (4, 3, 2), strict=True))
    judge = VLMJudge("http://127.0.0.1:9", preset="imgedit", rescale="none")
    assert judge._values(Completion(text, "", None), names) == dict(zip(names, (4.0, 3.0, 2.0), strict=True))
    assert judge.rate_edit(Completion(text, "", None), EDIT_CRITERIA[kind])["score"] == 3.0


@pytest.mark.parametrize("kind", ["add", "adjust", "action", "compose"])
@pytest.mark.parametrize("written", ["and", "&amp;", "AND", "＆", "&"])
def test_a_judge_may_write_and_for_the_sign(kind, written):
    names = list(EDIT_CRITERIA[kind].ratings)
    lines = [f"{name.replace('&', written)}: {number}" for name, number in zip(names, (4, 3, 2), strict=True)]
    judge = VLMJudge("http://127.0.0.1:9", preset="imgedit")
    for text in ("\n".join(lines), "\n".join(reversed(lines)), "; ".join(lines).replace(f" {written} ", "&")):
        values = judge._values(Completion(text, "", None), names)
        assert list(values.items()) == list(zip(names, (4.0, 3.0, 2.0), strict=True))


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("{name}: {number} or 5", "{name} is not one number"),
        ("{name}: good, four", "has no {name}"),
        ("Overall: 2", "has no {name}"),
        ("{name}: 9", "{name} is 9, the scale"),
    ],
)
def test_the_rating_that_cannot_be_read_is_named(place, said, fault):
    names = list(EDIT_CRITERIA["add"].ratings)
    lines = [f"{name}: {number}" for name, number in zip(names, (4, 3, 2), strict=True)]
    lines[place] = said.format(name=names[place], number=4 - place)
    judge = VLMJudge("http://127.0.0.1:9", preset="imgedit")
    for text in ("\n".join(lines), "\n".join(reversed(lines))):
        with pytest.raises(Unreadable, match=f"^the judge's (answer )?{re.escape(fault.format(name=names[place]))}"):
            judge._values(Completion(text, "", None), names)


def test_an_edit_without_a_kind_and_a_picture_from_text_alone_have_no_score():
    batch = edits(["add", None, "add"], source_images=[[Image.new("RGB", (4, 4))]] * 2 + [[]])
    with hostile_server(answering(5, 5, 5), MODELS) as server:
        table, _ = score(suite_of(server), batch)
        assert len(server.posts) == 1
    assert table.values.flatten().isnan().tolist() == [False, True, True]
    assert not table.failed.any()


def test_a_rating_that_is_missing_fails_the_sample():
    def two(request):
        text = "Prompt Compliance: 4\nVisual Naturalness: 4"
        request.send({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})

    with hostile_server(two, MODELS) as server:
        table, _ = score(suite_of(server, on_error="skip"), edits(["add"]))
    assert table.failures == {"judge": 1}


def test_other_names_of_a_kind():
    assert criteria_of({"edit_type": "alter"}) is EDIT_CRITERIA["adjust"]
    assert criteria_of({"edit_type": "Hybrid"}) is EDIT_CRITERIA["compose"]
    assert criteria_of({"edit_type": None}) is criteria_of({}) is None


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("recolour", r"metadata 'edit_type' is 'recolour'; one of add, adjust, .*, action is needed\."),
        ("removal", "Did you mean 'remove'"),
        (3, "metadata 'edit_type' is 3; one of add"),
        ("", "metadata 'edit_type' is ''; one of add"),
    ],
)
def test_an_unknown_kind_is_refused_before_anything_is_drawn(kind, said):
    with hostile_server(answering(5, 5, 5), MODELS) as server:
        suite = suite_of(server)
        with pytest.raises(UserError, match=f"^line 7: reward 'judge': .*{said}"):
            suite.check_samples([("line 7", "p", None, {"edit_type": kind})])
        suite.check_samples([("line 8", "p", None, {}), ("line 9", "p", None, {"edit_type": "add"})])
        table, _ = score(suite_of(server, on_error="skip"), edits([kind, "add"]))
    assert table.failures == {"judge": 1}
    assert table.values[1].item() == 1.0


def test_prompts_of_which_none_has_a_kind_are_refused():
    with hostile_server(answering(5, 5, 5), MODELS) as server:
        suite = suite_of(server)
        with pytest.raises(UserError, match="no prompt has 'edit_type' in its metadata, which preset imgedit goes by"):
            suite.check_columns([None, None], [{}, {"edit": "add"}])
        suite.check_columns([None, None], [{}, {"edit_type": "add"}])


@pytest.mark.parametrize(
    "parameters",
    [{"prompt": "Rate {prompt}."}, {"scale": [1, 10]}, {"ratings": {"a": 1}}, {"pattern": "(.)"}, {"parser": "json"}],
)
def test_what_the_kind_decides_is_not_decided_twice(parameters):
    entry = {"use": "vlm_judge", "url": "http://127.0.0.1:9/v1", "preset": "imgedit", **parameters}
    with pytest.raises(UserError, match="preset imgedit has a prompt, scale, ratings and parser of its own"):
        RewardSuite.from_recipe([entry])


@pytest.mark.parametrize("preset", ["imgedit", "edit"])
def test_a_judge_that_is_told_of_two_pictures_sees_two(preset):
    url = "http://127.0.0.1:9"
    with pytest.raises(UserError, match=f"sources is false, but preset {preset} asks about two pictures.*leave"):
        VLMJudge(url, preset=preset, sources=False)
    assert VLMJudge(url, preset=preset, sources=True).sources
    assert not VLMJudge(url, preset="edit", sources=False, prompt="Is it a good picture of {prompt}?").sources
