"""UniAR-Tiny's captions: the scene is what the caption and the metadata say, and splits share no combination."""

import itertools
import random
from collections import Counter

import pytest

from rewards.geneval.request import RELATIONS, SKILLS
from rl.tiny.captions import JITTER, LAYOUTS, RELATION_LAYOUTS, SIZE_WORDS, drawing
from rl.tiny.splits import OPPOSITES, SPLITS, color_attr_split, color_split, pair_split, position_split
from rl.tiny.world import BACKGROUNDS, COLORS, SHAPES, USUAL_BACKGROUND, USUAL_COLORS, apart, is_inside

DRAWN = 1500  # of each skill and split


def drawings(split, skill, count=DRAWN, seed=0):
    rng = random.Random(f"{split} {skill} {seed}")
    return [drawing(rng, split, skill) for _ in range(count)]


@pytest.fixture(scope="module")
def drawn():
    return {(split, skill): drawings(split, skill) for split in SPLITS for skill in SKILLS}


@pytest.mark.parametrize("skill", SKILLS)
def test_scenes_are_what_metadata_and_caption_say(drawn, skill):
    for each in drawn["train", skill] + drawn["held_out", skill]:
        things, words = each.scene.things, each.prompt.split()
        assert each.metadata["tag"] == skill
        assert len(things) == sum(clause["count"] for clause in each.metadata["include"])
        for clause in each.metadata["include"]:
            ours = [thing for thing in things if thing.shape == clause["class"]]
            assert len(ours) == clause["count"]
            for thing in ours:
                assert thing.color == clause.get("color", USUAL_COLORS[thing.shape])
        assert each.metadata["exclude"] == (
            [{"class": things[0].shape, "count": len(things) + 1}] if skill == "counting" else []
        )
        named_colors = set(COLORS) & set(words)
        assert named_colors == {clause["color"] for clause in each.metadata["include"] if "color" in clause}
        shapes = {word for word in words for shape in SHAPES if word in (shape, f"{shape}s", f"{shape}es")}
        assert len(shapes) == len({thing.shape for thing in things})
        named_sizes = {size for size, synonyms in SIZE_WORDS.items() if set(synonyms) & set(words)}
        assert named_sizes == {thing.size for thing in things} - {"medium"}
        named_backgrounds = set(BACKGROUNDS) & set(words)
        assert each.scene.background in (named_backgrounds or {USUAL_BACKGROUND})


@pytest.mark.parametrize("skill", SKILLS)
def test_things_are_at_the_places_of_the_conventions(drawn, skill):
    for each in drawn["train", skill]:
        things = each.scene.things
        assert all(is_inside(thing) for thing in things)
        assert all(apart(*pair) for pair in itertools.combinations(things, 2))
        if skill in ("single_object", "colors") and any(
            word in each.prompt for word in (" in the ", " at the ", " on the ")
        ):
            continue  # a place is named; the next test looks at those
        places = LAYOUTS[len(things)]
        if skill == "position":
            places = RELATION_LAYOUTS[each.metadata["include"][1]["position"][0]]
            assert things[0].shape == each.metadata["include"][1]["class"]
        for thing, (x, y) in zip(things, places, strict=True):
            assert max(abs(thing.x - x), abs(thing.y - y)) <= JITTER


def test_named_places():
    sides = {
        "left": (0, 20),
        "right": (44, 64),
        "top": (0, 20),
        "upper": (0, 20),
        "bottom": (44, 64),
        "lower": (44, 64),
    }
    named = Counter()
    for each in drawings("train", "single_object"):
        words = each.prompt.split(" background")[0].split()
        thing = each.scene.things[0]
        for word in set(words) & set(sides):
            at = thing.x if word in ("left", "right") else thing.y
            assert sides[word][0] <= at <= sides[word][1], each
            named[word] += 1
        if not set(words) & set(sides):
            assert max(abs(thing.x - 32), abs(thing.y - 32)) <= JITTER, each
    assert min(named[word] for word in sides) > 10


def test_things_are_in_the_relation_that_the_caption_names(drawn):
    said = Counter()
    for each in drawn["train", "position"]:
        b, a = each.metadata["include"]
        relation, target = a["position"]
        assert target == 0
        places = {thing.shape: (thing.x, thing.y) for thing in each.scene.things}
        (ax, ay), (bx, by) = places[a["class"]], places[b["class"]]
        offset = {"left of": bx - ax, "right of": ax - bx, "above": by - ay, "below": ay - by}[relation]
        assert offset > 24
        said[relation] += 1
    assert min(said[relation] for relation in RELATIONS) > DRAWN / 8


def combination(skill, metadata):
    """What the table in `rl.tiny.splits` calls the combination, computed from the metadata alone."""
    include = metadata["include"]
    if skill == "colors":
        return include[0]["class"], include[0]["color"]
    if skill == "two_object":
        return frozenset(clause["class"] for clause in include)
    if skill == "color_attr":
        return frozenset((clause["class"], clause["color"]) for clause in include)
    a, relation, b = include[1]["class"], include[1]["position"][0], include[0]["class"]
    return (a, relation, b) if relation in ("left of", "above") else (b, OPPOSITES[relation], a)


@pytest.mark.parametrize("skill", ["colors", "two_object", "position", "color_attr"])
def test_splits_share_no_combination(drawn, skill):
    train, held_out = ({combination(skill, each.metadata) for each in drawn[split, skill]} for split in SPLITS)
    assert train
    assert held_out
    assert not train & held_out


def test_held_out_combinations_are_nowhere_in_training(drawn):
    """Of all skills: no train scene shows a held-out colour of a shape, or two shapes that are held out together."""
    colors = {combination("colors", each.metadata) for each in drawn["held_out", "colors"]}
    pairs = {combination("two_object", each.metadata) for each in drawn["held_out", "two_object"]}
    for skill in SKILLS:
        for each in drawn["train", skill]:
            assert not {(thing.shape, thing.color) for thing in each.scene.things} & colors
            assert frozenset(thing.shape for thing in each.scene.things) not in pairs


def test_every_combination_is_of_one_split():
    """All combinations there are, by the table's own definitions."""
    splits = {pair: color_split(*pair) for pair in itertools.product(SHAPES, COLORS)}
    held_out = [pair for pair, split in splits.items() if split == "held_out"]
    assert 0.15 < len(held_out) / len(splits) < 0.25
    for values, index in ((SHAPES, 0), (COLORS, 1)):
        assert {pair[index] for pair in held_out} == set(values)
        assert all(sum(pair[index] == value for pair in held_out) <= 2 for value in values)
    assert all(splits[pair] == "train" for pair in USUAL_COLORS.items())

    pairs = {pair: pair_split(*pair) for pair in itertools.permutations(SHAPES, 2)}
    assert all(pairs[a, b] == pairs[b, a] for a, b in pairs)
    assert sum(split == "held_out" for split in pairs.values()) == 2 * 3
    assert {pair[0] for pair, split in pairs.items() if split == "held_out"} == set(SHAPES)

    triples = {(a, relation, b): position_split(a, relation, b) for a, b in pairs for relation in RELATIONS}
    assert all(triples[a, relation, b] == triples[b, OPPOSITES[relation], a] for a, relation, b in triples)
    assert all((split is None) == (pairs[a, b] == "held_out") for (a, _, b), split in triples.items())
    for split in SPLITS:
        assert {relation for (_, relation, _), each in triples.items() if each == split} == set(RELATIONS)
        assert {a for (a, _, _), each in triples.items() if each == split} == set(SHAPES)
    assert 0.15 < sum(split == "held_out" for split in triples.values()) / (len(triples) * 0.8) < 0.25

    attributes = Counter()
    for a, b in itertools.combinations(splits, 2):
        if a[0] == b[0]:
            continue
        split = color_attr_split(a, b)
        assert split == color_attr_split(b, a)
        has_parts_held_out = "held_out" in (splits[a], splits[b], pairs[a[0], b[0]])
        assert (split is None) == has_parts_held_out
        attributes[split] += 1
    assert 0.15 < attributes["held_out"] / (attributes["held_out"] + attributes["train"]) < 0.25


@pytest.mark.parametrize("skill", SKILLS)
def test_no_text_is_in_both_splits(drawn, skill):
    train, held_out = ({each.prompt for each in drawn[split, skill]} for split in SPLITS)
    assert not train & held_out
    assert min(len(train), len(held_out)) > 200  # varied wording


def test_seeds_decide():
    assert drawings("train", None, 50) == drawings("train", None, 50)
    assert drawings("train", None, 50, seed=1) != drawings("train", None, 50)
    skills = Counter(each.metadata["tag"] for each in drawings("held_out", None, 1200))
    assert min(skills[skill] for skill in SKILLS) > 140
