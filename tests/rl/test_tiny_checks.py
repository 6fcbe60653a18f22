"""What UniAR-Tiny is taught to say about a picture of a caption, and the picture that puts it right."""

import copy
import random

import pytest

from rewards.contract.base import RewardBatch
from rl.data.prompts import PromptRecord
from rl.episodes.draw_check_redraw import draw_check_redraw
from rl.tiny.captions import PLACES, Drawing, drawing
from rl.tiny.checks import EVERYTHING, NOTHING, check, checked
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
    """The reward looks at pixels, the check at the scene. Of several things of a shape the reward looks at the likest
    first, so it may find right what is right in one order alone."""
    rng = random.Random(0)
    asked = [drawing(rng, None) for _ in range(400)]
    others = [drawing(rng, None, each.metadata["tag"]).scene for each in asked]
    shown = [each.scene if rng.random() < 0.3 else other for each, other in zip(asked, others, strict=True)]
    right = strict(shown, [each.metadata for each in asked])
    found = [checked(*pair).found == NOTHING for pair in zip(asked, shown, strict=True)]
    assert found == [score == 1 for score in right]
    assert 0.3 < sum(found) / len(found) < 0.7


def test_one_right_of_two_things_of_a_shape_is_not_enough():
    asked = Drawing(
        "a blue triangle",
        {"tag": "colors", "include": [{"class": "triangle", "count": 1, "color": "blue"}], "exclude": []},
        scene(("triangle", "blue", "medium", 32, 32)),
    )
    two = (("triangle", "blue", "medium", 32, 32), ("triangle", "purple", "medium", 48, 16))
    for things in (two, two[::-1]):
        assert checked(asked, scene(*things)).found == "remove the purple triangle"


def test_redrawn_pictures_are_what_was_said():
    """The sentences, carried out on the picture that was shown, give the one that is drawn next, and it is right."""
    rng = random.Random(1)
    told = {NOTHING: 0, EVERYTHING: 0, "one": 0, "two": 0}
    for _ in range(500):
        asked = drawing(copy.deepcopy(rng), None)  # the one that the check draws first
        made = check(rng, None)
        assert made.prompt == asked.prompt
        told[made.found if made.found in told else ("one", "two")[made.found.count(", ")]] += 1
        assert strict([made.redrawn], [asked.metadata]) == [1.0], made
        if made.found == EVERYTHING:
            assert made.redrawn == asked.scene
        else:
            assert made.redrawn.background == made.shown.background
            sentences = [] if made.found == NOTHING else made.found.split(", ")
            assert looks(made.redrawn.things) == carried_out(made.shown.things, sentences), made
            verbs = {sentence.split()[0] for sentence in sentences}
            if verbs <= {"make", "move"}:
                keep = ("shape", "size") if "move" in verbs else ("shape", "size", "x", "y")
                assert kept(made.redrawn.things, keep) == kept(made.shown.things, keep), made
    assert min(told.values()) > 20


def kept(things, names):
    return sorted(tuple(getattr(thing, name) for name in names) for thing in things)


def looks(things):
    """Shape, colour, and the place by its name."""
    return sorted((thing.shape, thing.color, place_name(thing)) for thing in things)


def place_name(thing):
    place = min(PLACES, key=lambda place: abs(place[0] - thing.x) + abs(place[1] - thing.y))
    return PLACES[place][0].split(maxsplit=1)[1]


def carried_out(things, sentences):
    """`looks` of things after instructions, which name a thing by its shape, and its colour where it is removed."""
    now = [[thing.shape, thing.color, place_name(thing)] for thing in things]
    for sentence in sentences:
        verb, _, rest = sentence.split(maxsplit=2)
        words = rest.split()
        if verb == "add":
            now.append([words[1], words[0], " ".join(words[3:])])
        elif verb == "remove":
            now.remove(next(each for each in now if each[:2] == [words[1], words[0]]))
        elif verb == "make":
            [each] = [each for each in now if each[0] == words[0]][:1]
            each[1] = words[1]
        else:
            [each] = [each for each in now if each[0] == words[0]][:1]
            each[2] = " ".join(words[2:])
    return sorted(map(tuple, now))


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
        (
            scene(("circle", "pink", "medium", 48, 16), ("square", "blue", "medium", 48, 32)),
            NOTHING,
        ),
        (scene(("cross", "red", "medium", 16, 32), ("ring", "cyan", "medium", 48, 32)), EVERYTHING),
    ],
)
def test_what_is_said(shown, text):
    assert checked(RED_CIRCLE, shown).found == text


def test_questions_and_instructions_are_those_of_the_episode():
    """Asked and redrawn word for word as `draw_check_redraw` does it."""
    made = check(random.Random(2), None)
    episode = draw_check_redraw(PromptRecord(made.prompt))
    next(episode)
    asked = episode.send("the drawing")
    assert asked.messages[0].parts == ("the drawing", made.question)
    assert episode.send(made.found).prompt == made.instruction
