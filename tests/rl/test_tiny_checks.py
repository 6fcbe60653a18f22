"""What UniAR-Tiny is taught to say about a picture of a caption, and the picture that puts it right."""

import random

import pytest

from rewards.contract.base import RewardBatch
from rl.data.prompts import PromptRecord
from rl.episodes.draw_check_redraw import draw_check_redraw
from rl.tiny.captions import Drawing, drawing
from rl.tiny.checks import EVERYTHING, NOTHING, check, described, faults
from rl.tiny.shapes import Shapes
from rl.tiny.world import Scene, Thing, render

RED_CIRCLE = Drawing(
    "a circle beside a square",
    {"tag": "two_object", "include": [{"class": "circle", "count": 1}, {"class": "square", "count": 1}], "exclude": []},
    Scene((Thing("circle", "red", "medium", 16, 32), Thing("square", "blue", "medium", 48, 32))),
)


def strict(scenes, metadata):
    images = [render(scene) for scene in scenes]
    return [each["score"] for each in Shapes().score(RewardBatch([""] * len(images), images, metadata=metadata))]


def scene(*things):
    return Scene(tuple(Thing(*thing) for thing in things))


def test_nothing_is_wrong_exactly_where_the_reward_says_so():
    """The reward looks at pixels, the check at the scene."""
    rng = random.Random(0)
    asked = [drawing(rng, None) for _ in range(400)]
    shown = [each.scene if rng.random() < 0.3 else drawing(rng, None, each.metadata["tag"]).scene for each in asked]
    right = strict(shown, [each.metadata for each in asked])
    found = [described(faults(*pair)) == NOTHING for pair in zip(asked, shown, strict=True)]
    assert found == [score == 1 for score in right]
    assert 0.3 < sum(found) / len(found) < 0.7


def test_redrawn_pictures_are_right_and_keep_what_was():
    rng = random.Random(1)
    told = {NOTHING: 0, EVERYTHING: 0, "one": 0, "two": 0}
    for _ in range(600):
        seen = rng.getstate()
        made = check(rng, None)
        asked = drawing(_at(seen), None)
        assert made.prompt == asked.prompt
        assert strict([made.redrawn], [asked.metadata]) == [1.0]
        told[made.found if made.found in told else ("one", "two")[made.found.count(", ")]] += 1
        kept = set(made.shown.things) & set(made.redrawn.things)
        if made.found == NOTHING:
            assert made.redrawn == made.shown
        elif made.found != EVERYTHING and made.redrawn != asked.scene:
            assert len(kept) >= len(made.shown.things) - 1 - made.found.count(", ")
    assert min(told.values()) > 30


def _at(state):
    rng = random.Random()
    rng.setstate(state)
    return rng


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (scene(("circle", "red", "small", 16, 32), ("square", "pink", "medium", 48, 32)), NOTHING),
        (scene(("circle", "pink", "medium", 16, 32)), "make the circle red, add a blue square on the right"),
        (scene(("circle", "red", "medium", 48, 32)), "move the circle to the left, add a blue square on the right"),
        (
            scene(("circle", "red", "medium", 16, 32), ("ring", "cyan", "medium", 48, 32)),
            "add a blue square on the right, remove the cyan ring",
        ),
        (scene(("cross", "red", "medium", 16, 32), ("ring", "cyan", "medium", 48, 32)), EVERYTHING),
    ],
)
def test_what_is_said(shown, text):
    assert described(faults(RED_CIRCLE, shown)) == text


def test_questions_and_instructions_are_those_of_the_episode():
    """Asked and redrawn word for word as `draw_check_redraw` does it."""
    made = check(random.Random(2), None)
    episode = draw_check_redraw(PromptRecord(made.prompt))
    next(episode)
    asked = episode.send("the drawing")
    assert asked.messages[0].parts == ("the drawing", made.question)
    assert episode.send(made.found).prompt == made.instruction
