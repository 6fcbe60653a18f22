"""GenEval's clauses on made-up detections: 50 cases over the six skills and exclude, both credits computed by hand."""

import math

import pytest

from rewards.geneval.clauses import (
    Detection,
    kept,
    need_color,
    partial_credit,
    relations,
    strict_credit,
)
from rewards.geneval.request import COLORS, OBJECT_NAMES, RELATIONS, SKILLS, Exclude, Include, Request, read_request
from uniar.errors import UserError


def box(x, y, width=100, height=100):
    """Centred at (x, y)."""
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def objects(*colors, at=None):
    return [Detection(box(*(at or (100 + 120 * place, 100))), color) for place, color in enumerate(colors)]


def one(x, y, color=None, **size):
    return [Detection(box(x, y, **size), color)]


def some(count):
    return objects(*[None] * count)


def single(name):
    return {"tag": "single_object", "include": [{"class": name, "count": 1}]}


def two(a, b):
    return {"tag": "two_object", "include": [{"class": a, "count": 1}, {"class": b, "count": 1}]}


def counting(name, count):
    return {
        "tag": "counting",
        "include": [{"class": name, "count": count}],
        "exclude": [{"class": name, "count": count + 1}],
    }


def colors(name, color, count=1):
    return {"tag": "colors", "include": [{"class": name, "count": count, "color": color}], "exclude": []}


def color_attr(a, color_a, b, color_b):
    clauses = [{"class": a, "count": 1, "color": color_a}, {"class": b, "count": 1, "color": color_b}]
    return {"tag": "color_attr", "include": clauses}


def position(a, relation, b):
    clauses = [{"class": b, "count": 1}, {"class": a, "count": 1, "position": [relation, 0]}]
    return {"tag": "position", "include": clauses, "exclude": []}


COLORED_PLACE = {
    "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "color": "red", "position": ["above", 0]}]
}
NO_DOG = {"include": [{"class": "cat", "count": 1}], "exclude": [{"class": "dog", "count": 1}]}
ONLY_NO_DOG = {"exclude": [{"class": "dog", "count": 1}]}

# (metadata, what is found, strict credit, terms of the partial credit)
CASES = {
    # single_object: at least one is enough; the partial credit wants exactly one
    "it is there": (single("dog"), {"dog": some(1)}, 1, [1]),
    "it is not": (single("dog"), {}, 0, [0]),
    "something else is": (single("dog"), {"cat": some(1)}, 0, [0]),
    "something else as well": (single("dog"), {"dog": some(1), "cat": some(4)}, 1, [1]),
    "twice": (single("dog"), {"dog": some(2)}, 1, [0]),
    "four times": (single("dog"), {"dog": some(4)}, 1, [-2]),
    "a class that COCO names otherwise": (single("mouse"), {"computer mouse": some(1)}, 1, [1]),
    # two_object
    "both": (two("carrot", "book"), {"carrot": some(1), "book": some(1)}, 1, [1, 1]),
    "only the first": (two("carrot", "book"), {"carrot": some(1)}, 0, [1, 0]),
    "only the second": (two("carrot", "book"), {"book": some(1)}, 0, [0, 1]),
    "neither": (two("carrot", "book"), {"bird": some(1)}, 0, [0, 0]),
    "one of them twice": (two("carrot", "book"), {"carrot": some(2), "book": some(1)}, 1, [0, 1]),
    # counting: exclude turns "at least" into "exactly"
    "three of three": (counting("skis", 3), {"skis": some(3)}, 1, [1]),
    "two of three": (counting("skis", 3), {"skis": some(2)}, 0, [2 / 3]),
    "four of three": (counting("skis", 3), {"skis": some(4)}, 0, [2 / 3]),
    "none of three": (counting("skis", 3), {}, 0, [0]),
    "six of three": (counting("skis", 3), {"skis": some(6)}, 0, [0]),
    "sixteen of two": (counting("skis", 2), {"skis": some(16)}, 0, [-6]),
    "one of four": (counting("skis", 4), {"skis": some(1)}, 0, [1 / 4]),
    # colors: of the surest ones
    "right colour": (colors("bus", "red"), {"bus": objects("red")}, 1, [1, 1]),
    "wrong colour": (colors("bus", "red"), {"bus": objects("blue")}, 0, [1, 0]),
    "nothing to have a colour": (colors("bus", "red"), {}, 0, [0, 0]),
    "the surest is right, one too many": (colors("bus", "red"), {"bus": objects("red", "blue")}, 1, [0, 0]),
    "the surest is wrong": (colors("bus", "red"), {"bus": objects("blue", "red")}, 0, [0, 0]),
    "both of two": (colors("bus", "red", 2), {"bus": objects("red", "red")}, 1, [1, 1]),
    "one of two in the colour": (colors("bus", "red", 2), {"bus": objects("red", "blue")}, 0, [1, 1 / 2]),
    "neither of two": (colors("bus", "red", 2), {"bus": objects("white", "blue")}, 0, [1, 0]),
    "too few to look at colours": (colors("bus", "red", 2), {"bus": objects("red")}, 0, [1 / 2, 0]),
    # color_attr
    "each in its colour": (
        color_attr("cat", "black", "bus", "red"),
        {"cat": objects("black"), "bus": objects("red")},
        1,
        [1, 1, 1, 1],
    ),
    "colours swapped": (
        color_attr("cat", "black", "bus", "red"),
        {"cat": objects("red"), "bus": objects("black")},
        0,
        [1, 0, 1, 0],
    ),
    "one colour leaked": (
        color_attr("cat", "black", "bus", "red"),
        {"cat": objects("red"), "bus": objects("red")},
        0,
        [1, 0, 1, 1],
    ),
    "one missing": (color_attr("cat", "black", "bus", "red"), {"cat": objects("black")}, 0, [1, 1, 0, 0]),
    "one too many": (
        color_attr("cat", "black", "bus", "red"),
        {"cat": objects("black", "black"), "bus": objects("red")},
        1,
        [0, 0, 1, 1],
    ),
    # position: y grows downwards
    "above": (position("car", "above", "apple"), {"car": one(200, 100), "apple": one(200, 400)}, 1, [1, 1, 1]),
    "below instead": (position("car", "above", "apple"), {"car": one(200, 400), "apple": one(200, 100)}, 0, [1, 1, 0]),
    "below": (position("car", "below", "apple"), {"car": one(200, 400), "apple": one(200, 100)}, 1, [1, 1, 1]),
    "left": (position("car", "left of", "apple"), {"car": one(50, 200), "apple": one(400, 200)}, 1, [1, 1, 1]),
    "right": (position("car", "right of", "apple"), {"car": one(400, 200), "apple": one(50, 200)}, 1, [1, 1, 1]),
    "left instead": (
        position("car", "right of", "apple"),
        {"car": one(50, 200), "apple": one(400, 200)},
        0,
        [1, 1, 0],
    ),
    "left and above: left": (
        position("car", "left of", "apple"),
        {"car": one(50, 50), "apple": one(400, 400)},
        1,
        [1, 1, 1],
    ),
    "left and above: above": (
        position("car", "above", "apple"),
        {"car": one(50, 50), "apple": one(400, 400)},
        1,
        [1, 1, 1],
    ),
    "one on the other": (
        position("car", "above", "apple"),
        {"car": one(200, 200), "apple": one(200, 200)},
        0,
        [1, 1, 0],
    ),
    "too close": (position("car", "above", "apple"), {"car": one(200, 190), "apple": one(200, 205)}, 0, [1, 1, 0]),
    "no target": (position("car", "above", "apple"), {"car": one(200, 100)}, 0, [0, 1, 0]),
    "nothing to be placed": (position("car", "above", "apple"), {"apple": one(200, 100)}, 0, [1, 0, 0]),
    "the surest targets count": (
        position("car", "above", "apple"),
        {"car": one(200, 100), "apple": one(200, 400) + one(200, 20)},
        1,
        [0, 1, 0],
    ),
    "each of two to each of two": (
        {
            "include": [
                {"class": "dog", "count": 2},
                {"class": "cat", "count": 2, "position": ["left of", 0]},
            ]
        },
        {"dog": one(400, 100) + one(500, 400), "cat": one(50, 100) + one(480, 400)},
        0,
        [1, 1, 0],
    ),
    "colour and place": (COLORED_PLACE, {"dog": one(200, 400), "cat": one(200, 50, "red")}, 1, [1, 1, 1, 1]),
    "colour wrong, place not looked at": (
        COLORED_PLACE,
        {"dog": one(200, 400), "cat": one(200, 50, "pink")},
        0,
        [1, 1, 0],
    ),
    "colour right, place wrong": (COLORED_PLACE, {"dog": one(200, 50), "cat": one(200, 400, "red")}, 0, [1, 1, 1, 0]),
    # exclude
    "excluded and absent": (NO_DOG, {"cat": some(1)}, 1, [1, 1]),
    "excluded and there": (NO_DOG, {"cat": some(1), "dog": some(1)}, 0, [1, 0]),
    "nothing but an exclude": (ONLY_NO_DOG, {"cat": some(1)}, 1, [1]),
    "nothing but an exclude that fails": (ONLY_NO_DOG, {"dog": some(2)}, 0, [0]),
    "fewer than three may be there": (
        {"include": [{"class": "cat", "count": 1}], "exclude": [{"class": "dog", "count": 3}]},
        {"cat": some(1), "dog": some(2)},
        1,
        [1, 1],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_credit(case):
    metadata, found, strict, terms = CASES[case]
    request = read_request(metadata)
    assert strict_credit(request, found).score == strict
    assert partial_credit(request, found).score == pytest.approx(sum(terms) / len(terms))
    floored = partial_credit(request, found, floor=0).score
    assert floored == pytest.approx(sum(max(term, 0) for term in terms) / len(terms))
    for verdict in (strict_credit(request, found), partial_credit(request, found)):
        assert (verdict.why == ()) == (verdict.score == 1)


def test_the_table_covers_every_skill():
    assert len(CASES) >= 50
    tags = [metadata.get("tag") for metadata, *_ in CASES.values()]
    for skill in SKILLS:
        assert tags.count(skill) >= 5, skill


def test_reasons():
    def why(metadata, found, credit=strict_credit):
        return credit(read_request(metadata), found).why

    assert why(counting("skis", 3), {"skis": some(2)}) == ("3 skis asked for, 2 found",)
    assert why(counting("skis", 3), {"skis": some(5)}) == ("fewer than 4 skis asked for, 5 found",)
    assert why(counting("skis", 3), {"skis": some(5)}, partial_credit) == ("3 skis asked for, 5 found",)
    found = {"bus": objects("blue", "red", "blue")}
    assert why(colors("bus", "red", 3), found) == ("3 red bus asked for, 1 red and 2 blue found",)
    place = position("car", "above", "apple")
    assert why(place, {"car": one(400, 400), "apple": one(50, 50)}) == (
        "car above apple asked for, it is below and right of",
    )
    assert why(place, {"car": one(5, 5), "apple": one(5, 5)}) == ("car above apple asked for, it is too close to say",)
    assert why(place, {"car": one(5, 5)}) == ("1 apple asked for, 0 found", "no right apple for the car to be above")


def test_a_position_needs_a_target_that_holds_itself():
    request = Request((Include("dog", color="red"), Include("cat", relation="above", target=0)))
    found = {"dog": one(200, 400, "blue"), "cat": one(200, 50)}
    assert "no right dog for the cat to be above" in strict_credit(request, found).why
    assert partial_credit(request, found).score == pytest.approx((1 + 0 + 1 + 0) / 4)


@pytest.mark.parametrize(
    ("a", "b", "sides"),
    [
        (box(0, 0), box(300, 0), {"left of"}),
        (box(300, 0), box(0, 0), {"right of"}),
        (box(0, 0), box(0, 300), {"above"}),
        (box(0, 300), box(0, 0), {"below"}),
        (box(0, 0), box(300, 300), {"left of", "above"}),
        # The extents along the axis, 0.1 · (100 + 100), come off the offset.
        (box(0, 0), box(20, 0), set()),
        (box(0, 0), box(39, 0), set()),  # 19 of 39 are left: not more than half
        (box(0, 0), box(41, 0), {"left of"}),  # 21 of 41 are
        # A steep direction: 300 to the side are 280, of a distance of 670 less than half.
        (box(0, 0), box(300, 600), {"above"}),
        # Wide boxes take more off along x than along y: 0.1 · 800 of 120, 0.1 · 40 of 60.
        (box(0, 0, 400, 20), box(120, 60, 400, 20), set()),
        (box(0, 0, 400, 20), box(60, 60, 400, 20), {"above"}),
        (box(5, 5), box(5, 5), set()),
    ],
)
def test_relations(a, b, sides):
    assert relations(a, b) == sides


def test_relations_by_their_definition_in_polar_form():
    """The same rule from an independent direction: cosines of the angle, less what the extents take off."""
    for degrees in range(0, 360, 7):
        for distance in (30.0, 60.0, 400.0):
            x, y = distance * math.cos(math.radians(degrees)), distance * math.sin(math.radians(degrees))
            expected = set()
            if max(abs(x), abs(y)) > 18:
                expected |= {"right of"} if x - 18 > distance / 2 else set()
                expected |= {"left of"} if -x - 18 > distance / 2 else set()
                expected |= {"below"} if y - 18 > distance / 2 else set()
                expected |= {"above"} if -y - 18 > distance / 2 else set()
            assert relations(box(x, y, 100, 100), box(0, 0, 80, 80)) == expected, (degrees, distance)


def test_the_position_threshold_is_settable():
    request = read_request(position("car", "above", "apple"))
    found = {"car": one(200, 160), "apple": one(200, 200)}
    assert [strict_credit(request, found, threshold).score for threshold in (0.0, 0.09, 0.11, 0.5)] == [1, 1, 0, 0]


def test_kept_takes_the_surest_above_the_threshold():
    class Scored:
        def __init__(self, score):
            self.score = score

    scored = [Scored(score) for score in (0.2, 0.9, 0.3, 0.31, 0.5)]
    assert [detection.score for detection in kept(scored, 0.3, 16)] == [0.9, 0.5, 0.31]  # 0.3 itself is not above it
    assert [detection.score for detection in kept(scored, 0.0, 2)] == [0.9, 0.5]
    assert kept([], 0.3, 16) == []


def test_only_colours_that_matter_are_asked_for():
    request = read_request(colors("bus", "red", 2))
    assert need_color(request, {"bus": some(2), "dog": some(1)}, exact=False) == {("bus", 0), ("bus", 1)}
    assert need_color(request, {"bus": some(3)}, exact=False) == {("bus", 0), ("bus", 1)}
    assert need_color(request, {"bus": some(3)}, exact=True) == set()
    assert need_color(request, {"bus": some(1)}, exact=False) == set()
    assert need_color(read_request(single("bus")), {"bus": some(1)}, exact=False) == set()
    with pytest.raises(ValueError, match="colour of a bus was not determined"):
        strict_credit(request, {"bus": some(2)})


def test_a_record_is_read():
    metadata = {
        "tag": "position",
        "prompt": "a photo of a green car above an apple",
        "include": [
            {"class": "apple", "count": 1, "color": None, "position": None},  # as a table with columns has it
            {"class": "car", "color": "green", "position": ["above", 0]},
        ],
        "exclude": [{"class": "remote", "count": 2}],
    }
    assert read_request(metadata) == Request(
        include=(Include("apple"), Include("car", 1, "green", "above", 0)),
        exclude=(Exclude("tv remote", 2),),
        tag="position",
    )
    assert read_request({}) is None
    assert read_request({"tag": "counting", "include": [], "exclude": None}) is None
    assert read_request(single("dog")).exclude == ()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"tag": "color", "include": [{"class": "dog"}]}, "tag is 'color'; known: single_object, .*mean 'colors'"),
        ({"include": [{"class": "dgo"}]}, r"include\[0\] class is 'dgo'; known: one of COCO's 80 .*mean 'dog'"),
        ({"include": [{"count": 1}]}, r"include\[0\] class is None"),
        ({"include": [{"class": ["dog"]}]}, r"include\[0\] class is \['dog'\]"),
        ({"include": [{"class": "dog", "count": 0}]}, "count is 0; a whole number of at least 1"),
        ({"include": [{"class": "dog", "count": 1.5}]}, "count is 1.5"),
        ({"include": [{"class": "dog", "count": True}]}, "count is True"),
        ({"include": [{"class": "dog", "color": "grey"}]}, r"include\[0\] color is 'grey'; known: red, "),
        ({"include": [{"class": "dog", "colour": "red"}]}, "no 'colour'; its keys: .*mean 'color'"),
        ({"exclude": [{"class": "dog", "color": "red"}]}, r"exclude\[0\] has no 'color'; its keys: class, count"),
        ({"include": [{"class": "dog", "position": ["above", 0]}]}, "refers to clause 0; the index of an earlier one"),
        ({"include": [{"class": "dog", "position": "above"}]}, "position is 'above'; .relation, index"),
        (
            {"include": [{"class": "dog"}, {"class": "cat", "position": ["over", 0]}]},
            r"include\[1\] position is 'over'; known: left of, right of, above, below",
        ),
        ({"include": [{"class": "dog"}, {"class": "cat", "position": ["above", True]}]}, "refers to clause True"),
        ({"include": {"class": "dog"}}, "metadata 'include' is .*a list of clauses"),
        ({"include": ["dog"]}, "metadata 'include' is"),
    ],
)
def test_a_record_that_cannot_be_read_is_named(metadata, message):
    with pytest.raises(UserError, match=message):
        read_request(metadata)


def test_the_vocabulary():
    assert len(OBJECT_NAMES) == len(set(OBJECT_NAMES)) == 80
    assert (OBJECT_NAMES[0], OBJECT_NAMES[16], OBJECT_NAMES[63], OBJECT_NAMES[79]) == (
        "person",
        "dog",
        "laptop",
        "toothbrush",
    )
    assert (len(COLORS), len(RELATIONS), len(SKILLS)) == (10, 4, 6)
