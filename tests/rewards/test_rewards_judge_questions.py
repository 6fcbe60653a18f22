"""`judge_questions`: a prompt's questions, asked of a judge on the loopback that sees the colours of pictures."""

import base64
import io

import pytest
from PIL import Image
from support.hostile_server import hostile_server
from support.numbered_batch import score

from rewards import RewardBatch, RewardError, RewardSuite
from rewards.judge.questions import questions_of
from uniar.errors import UserError

MODELS = {"object": "list", "data": [{"id": "judge-7b", "object": "model"}]}
ASKED = [
    {"id": "1", "question": "Is the picture red?"},
    {"id": "2", "question": "Is the red bright?", "after": ["1"]},
    {"id": "3", "question": "Is there a picture?"},
]


def answering(request, text):
    request.send({"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]})


def by_looking(request):
    """Says that any red is bright, of pictures without red too: only what the question rests on tells them apart."""
    picture, asked = request.content["messages"][-1]["content"]
    data = base64.b64decode(picture["image_url"]["url"].split(",")[1])
    is_red = Image.open(io.BytesIO(data)).getpixel((0, 0))[0] > 128
    answering(request, "**No**, it is not." if "Is the picture red?" in asked["text"] and not is_red else "Yes.")


def batch_of(*questions):
    colours = ["red", "blue"] * 2
    pictures = [Image.new("RGB", (8, 8), colour) for colour, _ in zip(colours, questions, strict=False)]
    metadata = [{} if one is None else {"questions": one} for one in questions]
    return RewardBatch(["a red square"] * len(questions), pictures, [None] * len(questions), metadata)


def suite_of(server, **parameters):
    settings = {"url": f"{server.url}/v1", "deadline": 30, "attempts": 3, **parameters}
    return RewardSuite.from_recipe([{"use": "judge_questions", **settings}])


def test_the_share_of_yes_with_what_questions_rest_on():
    with hostile_server(by_looking, MODELS) as server:
        table, _ = score(suite_of(server), batch_of(ASKED, ASKED, None, ["Is the picture red?"]))
        assert len(server.posts) == 7  # each question on its own
    assert table.values[:, 0].nan_to_num(-1).tolist() == pytest.approx([1, 1 / 3, -1, 0])
    details = table.details["judge_questions"]
    assert details[0] == {"answers": {"1": True, "2": True, "3": True}, "why": "all yes"}
    assert details[1] == {"answers": {"1": False, "2": True, "3": True}, "why": "no: Is the picture red?"}


@pytest.mark.parametrize("answer", ["Perhaps.", "", "The picture is red, yes.", "yesterday", "<think>yes", "1"])
def test_what_is_neither_yes_nor_no_is_no_score(answer):
    with hostile_server(lambda request: answering(request, answer), MODELS) as server:
        suite = suite_of(server)
        with pytest.raises(RewardError, match="judge_questions"):
            suite.score(batch_of(ASKED))


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ("Is it red?", "a list of questions is needed"),
        ([3], "has 3; a question, or a mapping with a 'question', is needed"),
        ([{"question": " "}], "a question, or a mapping"),
        ([{"question": "a?", "after": "1"}], "a question, or a mapping"),
        ([{"question": "a?", "id": 1}, {"question": "b?", "id": "1"}], "gives an id twice"),
        ([{"question": "a?", "after": ["7"]}], "the question 'a\\?' rests on '7', which no question is called"),
    ],
)
def test_questions_of_another_form_are_refused(listed, said):
    with pytest.raises(UserError, match=said):
        questions_of({"questions": listed})
