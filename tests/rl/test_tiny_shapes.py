"""UniAR-Tiny's detector and its reward `rl.tiny.shapes:Shapes`, against the truth that the scenes are."""

import io
import itertools
import random
import time

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from rewards.contract.base import RewardBatch
from rewards.contract.spec import RewardSpec
from rewards.geneval.request import SKILLS
from rewards.suite import RewardSuite
from rl.tiny.captions import drawing
from rl.tiny.detector import UNCLEAR, detect, seen_scene
from rl.tiny.edits import KINDS, edit
from rl.tiny.scenes import scene_faults
from rl.tiny.shapes import Shapes, listed
from rl.tiny.world import BACKGROUNDS, COLORS, SHAPES, SIDE, SIZES, Scene, Thing, free_scene, render
from uniar.errors import UserError

SAMPLES = 2000


def scores(images, metadata, **settings):
    reward = Shapes(**settings)
    return reward.score(RewardBatch(["a picture"] * len(images), list(images), metadata=list(metadata)))


def is_right(scene, metadata):
    """Whether a scene is what the metadata asks for, from its things alone."""
    shapes = [thing.shape for thing in scene.things]
    for clause in metadata["include"]:
        colors = [thing.color for thing in scene.things if thing.shape == clause["class"]]
        if len(colors) < clause["count"] or (clause.get("color") and set(colors) != {clause["color"]}):
            return False
        if clause.get("position"):
            relation, target = clause["position"]
            [a] = [thing for thing in scene.things if thing.shape == clause["class"]]
            [b] = [thing for thing in scene.things if thing.shape == metadata["include"][target]["class"]]
            x, y = a.x - b.x, a.y - b.y
            sides = {"left of": x < -abs(y), "right of": x > abs(y), "above": y < -abs(x), "below": y > abs(x)}
            if not sides[relation]:
                return False
    return all(shapes.count(clause["class"]) < clause["count"] for clause in metadata["exclude"])


@pytest.fixture(scope="module")
def held_out():
    rng = random.Random(0)
    return {skill: [drawing(rng, "held_out", skill) for _ in range(SAMPLES // 6 + 1)] for skill in SKILLS}


def test_the_strict_score_is_right_on_held_out_drawings(held_out):
    """Of each picture with its own metadata, and with that of another drawing of the skill."""
    right, own_right, pairs = {}, {}, {False: 0, True: 0}
    for skill, drawn in held_out.items():
        images = [render(each.scene) for each in drawn]
        own = [each["score"] for each in scores(images, [each.metadata for each in drawn])]
        own_right[skill] = np.array(own) == 1
        others = [each.metadata for each in drawn[1:] + drawn[:1]]
        truth = [is_right(each.scene, metadata) for each, metadata in zip(drawn, others, strict=True)]
        for value in truth:
            pairs[value] += 1
        right[skill] = np.array([each["score"] for each in scores(images, others)]) == truth
    assert min(pairs.values()) > 200  # matching and not
    for found in (own_right, right):
        assert np.concatenate(list(found.values())).mean() >= 0.99
        assert min(values.mean() for values in found.values()) >= 0.97


def blurred(image, rng):
    return Image.fromarray(
        ndimage.gaussian_filter(np.asarray(image, np.float32), (0.7, 0.7, 0)).round().astype("uint8")
    )


def noisy(image, rng):
    return Image.fromarray((np.asarray(image) + rng.normal(0, 8, (SIDE, SIDE, 3))).clip(0, 255).astype("uint8"))


def jpeg(image, rng):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=60)
    return Image.open(file)


def off_color(image, rng):
    return Image.fromarray((np.asarray(image) + rng.normal(0, 12, 3)).clip(0, 255).astype("uint8"))


def wavering(image, rng):
    """Every outline up to a pixel or two off, as a small decoder draws it."""
    offsets = [ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), 3) for _ in range(2)]
    places = [
        grid + 0.6 * offset / offset.std() for grid, offset in zip(np.indices((SIDE, SIDE)), offsets, strict=True)
    ]
    channels = [
        ndimage.map_coordinates(channel, places, order=1, mode="nearest")
        for channel in np.asarray(image).transpose(2, 0, 1)
    ]
    return Image.fromarray(np.stack(channels, axis=2))


def blurred_and_noisy(image, rng):
    return noisy(blurred(off_color(image, rng), rng), rng)


@pytest.mark.parametrize(
    ("damage", "wanted"),
    [(blurred, 0.99), (noisy, 0.99), (off_color, 0.99), (blurred_and_noisy, 0.98), (wavering, 0.95), (jpeg, 0.95)],
)
def test_damaged_pictures(damage, wanted):
    """All things of free scenes, which are smaller and closer than those of drawings. JPEG halves the resolution of
    colour, which is all there is of yellow on grey."""
    rng, noise = random.Random(1), np.random.default_rng(1)
    scenes = [free_scene(rng) for _ in range(300)]
    found = [not scene_faults(detect(damage(render(scene), noise)), scene) for scene in scenes]
    assert np.mean(found) >= wanted


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_shape_color_and_size_is_found_to_the_pixel(background):
    for shape, color, size in itertools.product(SHAPES, COLORS, SIZES):
        scene = Scene((Thing(shape, color, size, 21, 40), Thing("circle", "red", "small", 45, 20)), background)
        assert not scene_faults(detect(render(scene)), scene, tolerance=0.5)
        seen = seen_scene(render(scene))
        assert set(seen.things) == set(scene.things)
        assert seen.background == background


def picture(draw, background="white"):
    """A picture drawn at eight times the size."""
    image = Image.new("RGB", (8 * SIDE, 8 * SIDE), BACKGROUNDS[background])
    draw(ImageDraw.Draw(image))
    return image.reduce(8)


RED, BLUE = COLORS["red"], COLORS["blue"]


@pytest.mark.parametrize(
    "draw",
    [
        lambda d: d.ellipse((200, 230, 330, 300), fill=RED),
        lambda d: d.pieslice((200, 200, 328, 328), 0, 180, fill=RED),
        lambda d: d.polygon([(200, 200), (328, 200), (264, 328)], fill=RED),
        lambda d: d.rectangle((200, 230, 320, 310), fill=RED),
        lambda d: d.arc((200, 200, 328, 328), 30, 330, width=32, fill=RED),
        lambda d: (d.ellipse((200, 200, 328, 328), fill=RED), d.ellipse((310, 200, 438, 328), fill=RED)),
        lambda d: d.rectangle((40, 40, 330, 330), fill=RED),
    ],
    ids=["flat", "half", "upside down", "oblong", "open ring", "touching", "huge"],
)
def test_other_shapes_are_unclear(draw):
    image = picture(draw)
    assert [each.shape for each in detect(image)] == [UNCLEAR]
    assert seen_scene(image) is None


def test_other_colors_are_unclear():
    brown = picture(lambda d: d.ellipse((200, 200, 328, 328), fill=(110, 80, 60)))
    halves = picture(
        lambda d: (
            d.pieslice((200, 200, 328, 328), 0, 180, fill=RED),
            d.pieslice((200, 200, 328, 328), 180, 360, fill=BLUE),
        )
    )
    for image in (brown, halves):
        [found] = detect(image)
        assert (found.shape, found.color) == ("circle", UNCLEAR)


def test_nothing_specks_and_noise_are_no_things():
    assert detect(render(Scene((), "grey"))) == []
    assert detect(noisy(render(Scene((), "black")), np.random.default_rng(0))) == []
    assert detect(picture(lambda d: d.ellipse((200, 200, 232, 232), fill=RED))) == []
    assert seen_scene(render(Scene(()))) is None
    assert listed([]) == "nothing"


def test_other_sizes_and_modes_of_pictures():
    scene = free_scene(random.Random(3), counts=(3,))
    for image in (render(scene).resize((256, 256)), render(scene).convert("RGBA")):
        assert not scene_faults(detect(image), scene)


def test_scene_faults():
    scene = Scene((Thing("circle", "red", "medium", 20, 20), Thing("cross", "blue", "medium", 44, 44)))
    assert scene_faults(detect(render(scene)), scene) == []
    changed = Scene((Thing("circle", "pink", "medium", 20, 20), Thing("cross", "blue", "medium", 44, 24)))
    assert scene_faults(detect(render(changed)), scene) == [
        "no red circle at 20, 20",
        "no blue cross at 44, 44",
        "pink circle at 20, 20 too many",
        "blue cross at 44, 24 too many",
    ]


# The reward ----------------------------------------------------------------------------------------------------------

COUNTING = {
    "tag": "counting",
    "include": [{"class": "circle", "count": 3}],
    "exclude": [{"class": "circle", "count": 4}],
}
PLACES = [(16, 16), (48, 16), (16, 48), (48, 48)]


def circles(count, color="red"):
    return render(Scene(tuple(Thing("circle", color, "medium", *place) for place in PLACES[:count])))


def test_counts_under_both_credits():
    images = [circles(count) for count in range(5)]
    strict = scores(images, [COUNTING] * 5)
    assert [each["score"] for each in strict] == [0, 0, 0, 1, 0]
    assert strict[2]["why"] == "3 circle asked for, 2 found"
    assert strict[2]["found"] in (
        "red circle at 16, 16; red circle at 48, 16",
        "red circle at 48, 16; red circle at 16, 16",
    )
    assert strict[3]["why"] == "all there"
    assert strict[4]["why"] == "fewer than 4 circle asked for, 4 found"
    partial = [each["score"] for each in scores(images, [COUNTING] * 5, credit="partial")]
    assert partial == pytest.approx([0, 1 / 3, 2 / 3, 1, 2 / 3])


def test_floor():
    one = {"include": [{"class": "circle", "count": 1}]}
    assert scores([circles(4)], [one], credit="partial")[0]["score"] == -2
    assert scores([circles(4)], [one], credit="partial", floor=0)[0]["score"] == 0


def test_colors_and_places():
    scene = Scene((Thing("ring", "cyan", "medium", 16, 32), Thing("cross", "orange", "medium", 48, 32)))
    colors = {"tag": "colors", "include": [{"class": "ring", "count": 1, "color": "blue"}]}
    places = {
        "tag": "position",
        "include": [{"class": "ring", "count": 1}, {"class": "cross", "count": 1, "position": ["left of", 0]}],
    }
    wrong_color, wrong_place = scores([render(scene)] * 2, [colors, places])
    assert (wrong_color["score"], wrong_color["why"]) == (0, "1 blue ring asked for, 1 cyan found")
    assert (wrong_place["score"], wrong_place["why"]) == (0, "cross left of ring asked for, it is right of")
    partial = [each["score"] for each in scores([render(scene)] * 2, [colors, places], credit="partial")]
    assert partial == pytest.approx([1 / 2, 2 / 3])


def test_a_shape_without_a_clear_color_is_of_no_color():
    brown = picture(lambda d: d.ellipse((200, 200, 328, 328), fill=(110, 80, 60)))
    asked = {"include": [{"class": "circle", "count": 1, "color": "red"}]}
    assert scores([brown], [asked])[0]["why"] == "1 red circle asked for, 1 unclear found"
    assert scores([brown], [{"include": [{"class": "circle", "count": 1}]}])[0]["score"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_edits_are_judged_by_their_target(kind):
    rng = random.Random(4)
    edits = [edit(rng, "held_out", kind) for _ in range(60)]
    done = scores([render(each.target) for each in edits], [each.metadata for each in edits])
    undone = scores([render(each.source) for each in edits], [each.metadata for each in edits])
    assert [each["score"] for each in done] == [1] * 60
    assert [each["score"] for each in undone] == [0] * 60


def test_metadata_that_asks_for_nothing_or_cannot_be_read():
    image = circles(1)
    nothing, unknown, ring = scores(
        [image] * 3,
        [{}, {"include": [{"class": "heart", "count": 1}]}, {"include": [{"class": "ring", "count": 1}]}],
    )
    assert nothing is None
    assert isinstance(unknown, UserError)
    assert "'heart'; known: circle, square" in str(unknown)
    assert ring["score"] == 0
    [brown] = scores([image], [{"include": [{"class": "ring", "color": "brown"}]}])
    assert "color is 'brown'; known: red, orange, yellow, green, cyan" in str(brown)


def test_in_a_recipe():
    entry = {"use": "rl.tiny.shapes:Shapes", "credit": "partial", "floor": 0.0}
    suite = RewardSuite([RewardSpec.from_mapping(entry)])
    batch = RewardBatch(["three circles"] * 2, [circles(3), circles(1)], metadata=[COUNTING] * 2)
    table = suite.score(batch)
    assert table.values.flatten().tolist() == pytest.approx([1, 1 / 3])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"floor": 0.0}, "floor is 0.0; only 'credit: partial' has one"),
        ({"credit": "partial", "floor": 2.0}, "floor is 2.0; at most 1 is needed"),
        ({"likeness": 1.0}, "likeness is 1.0; at least 0 and less than 1"),
        ({"position_threshold": -1.0}, "position_threshold is -1.0; it cannot be negative"),
        ({"credit": "lenient"}, "credit is 'lenient' .*, expected 'strict' or 'partial'"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(UserError, match=message):
        RewardSuite([RewardSpec.from_mapping({"use": "rl.tiny.shapes:Shapes", **settings})])


def test_scoring_takes_a_few_milliseconds():
    rng = random.Random(5)
    images = [render(free_scene(rng, counts=(4,))) for _ in range(50)]
    scores(images[:1], [COUNTING])  # the shapes to compare with are drawn once
    seconds = []
    for _ in range(3):
        start = time.process_time()
        scores(images, [COUNTING] * 50)
        seconds.append(time.process_time() - start)
    assert min(seconds) / 50 < 0.02
