"""`rl.tiny.scenes:Scenes`: an edit is right where its whole target is there and nothing else changed."""

import random

import pytest

from rewards.contract.base import RewardBatch
from rl.tiny.edits import KINDS, edit
from rl.tiny.scenes import Scenes, written_scene
from rl.tiny.world import Scene, Thing, render
from uniar.errors import UserError

SCENE = Scene((Thing("circle", "red", "medium", 16, 32), Thing("square", "blue", "medium", 48, 32)), "grey")


def score(scene, wanted, credit="strict"):
    [found] = Scenes(credit).score(RewardBatch([""], [render(scene)], metadata=[{"scene": written_scene(wanted)}]))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_right_and_sources_are_not(kind):
    rng = random.Random(0)
    edits = [edit(rng, None, kind) for _ in range(100)]
    assert all(score(each.target, each.target)["score"] == 1 for each in edits)
    assert all(score(each.source, each.target)["score"] == 0 for each in edits)
    partial = [score(each.source, each.target, "partial")["score"] for each in edits]
    assert all(0 < value < 1 for value in partial)


@pytest.mark.parametrize(
    ("things", "background", "partial", "why"),
    [
        (SCENE.things, "grey", 1.0, "all there"),
        (SCENE.things[:1], "grey", 2 / 3, "no blue square at 48, 32"),
        ((*SCENE.things, Thing("ring", "pink", "small", 32, 54)), "grey", 3 / 4, "pink ring at 32, 54 too many"),
        (SCENE.things, "black", 2 / 3, "a black background, not a grey one"),
        ((), "white", 0.0, "no red circle at 16, 32; no blue square at 48, 32; a white background, not a grey one"),
    ],
)
def test_what_is_wrong_is_said_and_costs_its_share(things, background, partial, why):
    shown = Scene(tuple(things), background)
    assert score(shown, SCENE)["score"] == float(partial == 1)
    found = score(shown, SCENE, "partial")
    assert found["score"] == pytest.approx(partial)
    assert found["why"] == why


def test_a_moved_thing_is_no_longer_where_it_was():
    moved = Scene((Thing("circle", "red", "medium", 30, 32), SCENE.things[1]), "grey")
    assert score(moved, SCENE, "partial")["score"] == pytest.approx(2 / 4)


def test_a_sample_without_a_scene_has_no_score():
    for metadata in ({}, {"scene": None}):
        Scenes().check_sample("a prompt", metadata)
        assert Scenes().score(RewardBatch([""], [render(SCENE)], metadata=[metadata])) == [None]


RING = {"shape": "ring", "color": "red", "x": 20, "y": 20}


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (["red circle"], r"scene is \['red circle'\]; a mapping"),
        ({"background": "grey"}, "a mapping with background and things"),
        ({"background": "grey", "things": [RING], "size": 3}, "and nothing else"),
        ({"background": "green", "things": [RING]}, "background 'green'; known: white, grey, black"),
        ({"background": ["grey"], "things": [RING]}, "background"),
        ({"background": "grey", "things": []}, r"things \[\]; a list of at least one"),
        ({"background": "grey", "things": "ring"}, "things 'ring'; a list"),
        ({"background": "grey", "things": ["red circle"]}, "the thing 'red circle'"),
        ({"background": "grey", "things": [RING, RING]}, "a ring and a ring at 20, 20 and 20, 20; they overlap"),
        *(
            ({"background": "grey", "things": [RING | wrong]}, "has the thing .* x and y in whole pixels")
            for wrong in (
                {"x": 1.5},
                {"x": True},
                {"y": 64},
                {"y": 10**400},
                {"x": float("nan")},
                {"shape": ["ring"]},
                {"color": "brown"},
                {"size": "large"},
            )
        ),
    ],
)
def test_metadata_that_is_no_scene_is_refused(written, said):
    with pytest.raises(UserError, match=said):
        Scenes().check_sample("a prompt", {"scene": written})
    [found] = Scenes().score(RewardBatch([""], [render(SCENE)], metadata=[{"scene": written}]))
    assert isinstance(found, UserError)
