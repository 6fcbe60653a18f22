"""Questions and edits of UniAR-Tiny's world: the answers and the targets are right, computed apart from the makers."""

import random
import re
from collections import Counter

import pytest

from rl.tiny import edits, questions
from rl.tiny.captions import PLACES, RELATION_WORDS
from rl.tiny.edits import edit
from rl.tiny.questions import described, question, question_about
from rl.tiny.splits import SPLITS, color_split, scene_split
from rl.tiny.world import COLORS, SHAPES, Scene, Thing, apart, is_inside

NUMBERS = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4}


@pytest.fixture(scope="module")
def asked():
    return {split: [question(rng, split) for _ in range(4000)] for split in SPLITS for rng in [random.Random(split)]}


def matching(scene, text):
    """The things that the words of a text fit, by shape and colour."""
    words = re.findall(r"[a-z]+", text)
    shapes = [shape for shape in SHAPES if {shape, f"{shape}s", f"{shape}es"} & set(words)]
    colors = [color for color in COLORS if color in words]
    return [
        thing
        for thing in scene.things
        if (not shapes or thing.shape in shapes) and (not colors or thing.color in colors)
    ]


def only(things):
    assert len(things) == 1
    return things[0]


def answer_of(asked):
    """The answer to a question, from its words and the scene alone."""
    scene, text = asked.scene, asked.question
    if asked.kind == "what":
        return only(matching(scene, text)).shape
    if asked.kind == "color":
        return scene.background if "background" in text else only(matching(scene, text)).color
    if asked.kind == "how_many":
        return next(word for word, number in NUMBERS.items() if number == len(matching(scene, text)))
    if asked.kind == "where":
        thing = only(matching(scene, text))
        row = "top" if thing.y < 25 else "bottom" if thing.y > 39 else ""
        column = "left" if thing.x < 25 else "right" if thing.x > 39 else ""
        return f"{row} {column}".strip() or "center"
    if "exactly" in text:
        number = next(number for word, number in NUMBERS.items() if f" {word} " in text)
        return "yes" if len(matching(scene, text)) == number else "no"
    for relation, synonyms in RELATION_WORDS.items():
        for words in synonyms:
            if match := re.fullmatch(rf"is the (\w+) {words} the (\w+)\?", text):
                a, b = (only([thing for thing in scene.things if thing.shape == shape]) for shape in match.groups())
                offset = {"left of": b.x - a.x, "right of": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}
                assert abs(offset[relation]) >= 12
                return "yes" if offset[relation] > 0 else "no"
    if text.startswith("is the "):
        only([thing for thing in scene.things if thing.shape in text])
    return "yes" if matching(scene, text) else "no"


@pytest.mark.parametrize("split", SPLITS)
def test_answers_are_right_and_short(asked, split):
    for each in asked[split]:
        assert each.answer == answer_of(each), each
        assert each.answer == each.answer.lower()
        assert 1 <= len(each.answer.split()) <= 2


def test_a_description_names_every_thing_from_left_to_right():
    things = (
        Thing("ring", "pink", "large", 50, 12),
        Thing("cross", "red", "small", 9, 32),
        Thing("square", "blue", "medium", 32, 30),
    )
    request, text = described(Scene(things, "grey"))
    assert request == "describe the picture."
    assert text == "small red cross left, medium blue square center, large pink ring top right, on grey"


def test_answers_are_balanced(asked):
    both = [each for split in SPLITS for each in asked[split]]
    kinds = Counter(each.kind for each in both)
    assert set(kinds) == set(questions.KINDS)
    assert min(kinds.values()) > 0.1 * len(both)
    yes = [each.answer == "yes" for each in both if each.kind == "yes_no"]
    assert 0.46 < sum(yes) / len(yes) < 0.54
    numbers = Counter(each.answer for each in both if each.kind == "how_many")
    assert set(numbers) == set(NUMBERS)
    assert max(numbers.values()) < 0.4 * kinds["how_many"]


def test_yes_and_no_are_as_likely_whatever_the_wording_begins_with(asked):
    """Else a model could answer without looking."""
    answers = {}
    for each in asked["train"] + asked["held_out"]:
        if each.kind == "yes_no":
            form = "exactly" if "exactly" in each.question else " ".join(each.question.split()[:2])
            answers.setdefault(form, []).append(each.answer == "yes")
    assert len(answers) >= 3
    for form, yes in answers.items():
        assert abs(sum(yes) / len(yes) - 0.5) < 0.1, form


def test_scenes_for_training_have_no_held_out_combination(asked):
    for each in asked["train"]:
        assert all(color_split(thing.shape, thing.color) == "train" for thing in each.scene.things)
        for shape in SHAPES:
            for color in COLORS:
                if f"{color} {shape}" in each.question:
                    assert color_split(shape, color) == "train"
    free = [each for each in asked["held_out"] if scene_split(each.scene) == "held_out"]
    assert len(free) > 0.6 * len(asked["held_out"])  # the rest are held-out drawings


def test_a_question_that_a_scene_does_not_allow_is_an_error():
    unconditional = Scene((Thing("circle", "red", "small", 20, 20), Thing("circle", "red", "small", 40, 40)))
    assert question_about(random.Random(0), unconditional, "yes_no").answer in ("yes", "no")
    with pytest.raises(ValueError, match="no 'what' question"):
        question_about(random.Random(0), unconditional, "what")


@pytest.mark.parametrize("kind", edits.KINDS)
@pytest.mark.parametrize("split", SPLITS)
def test_edits_change_what_they_say_and_nothing_else(split, kind):
    rng = random.Random(0)
    for each in [edit(rng, split, kind) for _ in range(300)]:
        before, after = set(each.source.things), set(each.target.things)
        gone, new = before - after, after - before
        words = each.instruction.split()
        assert each.source.background == each.target.background
        assert all(is_inside(thing) for thing in after)
        assert all(apart(a, b) for scene in (before, after) for a in scene for b in scene if a != b)
        assert len({thing.shape for thing in after}) == len(after)
        assert (len(gone), len(new)) == {"recolor": (1, 1), "add": (0, 1), "remove": (1, 0), "move": (1, 1)}[kind]
        subject = only(list(new or gone))
        assert subject.shape in words
        if kind == "recolor":
            old = only(list(gone))
            assert (old.shape, old.size, old.x, old.y) == (subject.shape, subject.size, subject.x, subject.y)
            assert words[-1] == subject.color != old.color
        elif kind == "add":
            assert subject.color in words
        elif kind == "move":
            old = only(list(gone))
            assert (old.shape, old.size, old.color) == (subject.shape, subject.size, subject.color)
        if kind in ("add", "move"):
            names = [
                name.removeprefix("in ") for name in PLACES[16 if subject.x < 32 else 48, 16 if subject.y < 32 else 48]
            ]
            assert any(each.instruction.endswith(name) for name in names)
        assert split == ("held_out" if "held_out" in (scene_split(each.source), scene_split(each.target)) else "train")


@pytest.mark.parametrize("kind", edits.KINDS)
def test_metadata_of_edits_describes_the_whole_target(kind):
    rng = random.Random(1)
    for each in [edit(rng, "train", kind) for _ in range(100)]:
        things = {thing.shape: thing for thing in each.target.things}
        assert each.metadata["edit"] == kind
        assert {(clause["class"], clause["color"]) for clause in each.metadata["include"]} == {
            (thing.shape, thing.color) for thing in things.values()
        }
        limits = {clause["class"]: clause["count"] for clause in each.metadata["exclude"]}
        assert all(limits[shape] == 2 for shape in things)
        absent = {thing.shape for thing in each.source.things} - set(things)
        assert {shape for shape, count in limits.items() if count == 1} == absent
        assert len(absent) == (kind == "remove")
        placed = [clause for clause in each.metadata["include"] if "position" in clause]
        assert len(placed) == (kind == "move")
        for clause in placed:
            relation, target = clause["position"]
            other = things[each.metadata["include"][target]["class"]]
            held = {}
            for name, scene in (("source", each.source), ("target", each.target)):
                a = only([thing for thing in scene.things if thing.shape == clause["class"]])
                held[name] = {"left of": a.x < other.x - 9, "right of": a.x > other.x + 9}.get(
                    relation, a.y < other.y - 9 if relation == "above" else a.y > other.y + 9
                )
            assert held == {"source": False, "target": True}  # it tells the edit from none


def test_seeds_decide():
    for make in (question, edit):
        first, second = ([make(random.Random(seed), "train") for seed in range(20)] for _ in range(2))
        assert first == second
        assert len({str(each) for each in first}) == 20
