"""Episodes: what the built-in ones ask for, how a recipe names them, and what is refused."""

import pytest
from PIL import Image

from rl.data.prompts import PromptRecord
from rl.episodes.registry import EPISODES, Episodes
from rl.episodes.requests import Draw, Write
from uniar.errors import UserError

PICTURE = Image.new("RGB", (64, 64), "red")


class Shown(PromptRecord):
    """A record whose picture is there already."""

    pictures = (PICTURE,)


def played(name: str, record: PromptRecord, *made: object) -> list:
    """What an episode asks for when it is sent these things."""
    episode = EPISODES[name](record)
    asked = [episode.send(None)]
    for one in made:
        try:
            asked.append(episode.send(one))
        except StopIteration:
            return asked
    pytest.fail(f"{name} asks for more than {len(made)} turns")


def test_draw_draws_or_edits():
    assert played("draw", PromptRecord("a cat"), "drawing") == [Draw("a cat", ())]
    assert played("draw", Shown("make it blue"), "drawing") == [Draw("make it blue", (PICTURE,))]


@pytest.mark.parametrize(("record", "pictures"), [(PromptRecord("why?"), ()), (Shown("what is this?"), (PICTURE,))])
def test_answer_asks_once_with_the_picture_before_the_question(record, pictures):
    [asked] = played("answer", record, "because")
    [message] = asked.messages
    assert (message.role, message.parts) == ("user", (*pictures, record.prompt))
    assert asked.max_new_tokens is None


def test_think_draw_draws_what_it_has_thought():
    thought, drawn = played("think_draw", PromptRecord("a cat"), "a cat on a mat", "drawing")
    assert isinstance(thought, Write)
    assert "a cat" in thought.messages[0].parts[-1]
    assert drawn == Draw("a cat\na cat on a mat", ())
    assert played("think_draw", PromptRecord("a cat"), "", "drawing")[-1] == Draw("a cat", ())


def test_draw_check_redraw_reads_and_edits_its_own_drawing():
    drawing = object()
    first, check, second = played("draw_check_redraw", PromptRecord("a cat"), drawing, "it is a dog", "drawing")
    assert first == Draw("a cat", ())
    assert check.messages[0].parts[0] is drawing
    assert second == Draw("a cat\nit is a dog", (drawing,))


def test_tasks_play_what_the_recipe_says():
    episodes = Episodes({"vqa": "answer", "story": "think_draw"})
    assert [episodes.name_of(task) for task in ("vqa", "story", "other", None)] == [
        "answer",
        "think_draw",
        "draw",
        "draw",
    ]
    assert Episodes({"default": "answer"}).name_of(None) == "answer"
    assert episodes.turns([None]) == {"picture"}
    assert episodes.turns(["vqa"]) == {"text"}
    assert episodes.turns(["story", "vqa"]) == {"picture", "text"}
    redrawn = Episodes({"vqa": "answer", "default": "draw_check_redraw"})
    assert redrawn.most_turns([None, "vqa"]) == {"picture": 2, "text": 1}


def test_a_plug_in_is_loaded_from_the_recipes_folder(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from rl.episodes.requests import Draw, turns\n\n"
        "def free(record):\n    yield Draw(record.prompt)\n\n"
        "@turns('picture')\ndef bound(record):\n    yield Draw(record.prompt)\n\n"
        "def plain(record):\n    return 3\n\n"
        "def pair(record, other):\n    yield Draw(record.prompt)\n\n"
        "@turns('video')\ndef film(record):\n    yield Draw(record.prompt)\n"
    )
    episodes = Episodes({"a": "mine.py:free", "b": "mine.py:bound"}, tmp_path)
    assert next(episodes.of("a")(PromptRecord("a cat"))) == Draw("a cat")
    assert episodes.turns(["a"]) == {"picture", "text"}
    assert episodes.most_turns(["a", "b"]) == {"picture": 1, "text": 1}
    assert episodes.turns(["b"]) == {"picture"}
    for name, said in (
        ("plain", "not a generator function"),
        ("pair", "cannot be called with a prompt record"),
        ("film", "they are text and picture"),
        ("nothing", "has no 'nothing'"),
    ):
        with pytest.raises(UserError, match=said):
            Episodes({"a": f"mine.py:{name}"}, tmp_path).of("a")


@pytest.mark.parametrize(
    ("name", "said"), [("drawn", "Did you mean 'draw'"), ("think", "expected one of draw, answer")]
)
def test_a_name_that_is_none_is_refused(name, said):
    with pytest.raises(UserError, match=said):
        Episodes({"default": name}).of(None)
