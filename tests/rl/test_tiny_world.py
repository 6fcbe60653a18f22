"""UniAR-Tiny's world: scenes that keep its rules, pictures that show them."""

import itertools
import random

import numpy as np
import pytest

from rl.tiny.world import (
    BACKGROUNDS,
    COLORS,
    GAP,
    SHAPES,
    SIDE,
    SIZES,
    USUAL_COLORS,
    Scene,
    Thing,
    apart,
    free_scene,
    is_inside,
    render,
)


def pixels(scene):
    return np.asarray(render(scene)).astype(int)


def test_the_world_is_as_large_as_promised():
    assert len(SHAPES) >= 6
    assert len(COLORS) == 8
    assert len(SIZES) == 3
    assert set(USUAL_COLORS) == set(SHAPES)
    assert set(USUAL_COLORS.values()) <= set(COLORS)


def test_colors_are_far_from_each_other_and_from_backgrounds():
    distance = {
        (a, b): np.linalg.norm(np.subtract(first, second))
        for (a, first), (b, second) in itertools.combinations((COLORS | BACKGROUNDS).items(), 2)
    }
    assert min(distance.values()) > 80, min(distance, key=distance.get)
    saturation = {name: max(rgb) - min(rgb) for name, rgb in (COLORS | BACKGROUNDS).items()}
    assert all((saturation[name] > 120) == (name in COLORS) for name in saturation)


def test_free_scenes_keep_things_apart_and_inside():
    rng = random.Random(0)
    scenes = [free_scene(rng) for _ in range(1000)]
    for scene in scenes:
        assert all(is_inside(thing) for thing in scene.things)
        assert all(apart(*pair) for pair in itertools.combinations(scene.things, 2))
    assert {len(scene.things) for scene in scenes} == {1, 2, 3, 4}
    things = [thing for scene in scenes for thing in scene.things]
    for name, values in (("shape", SHAPES), ("color", COLORS), ("size", SIZES)):
        counts = [sum(getattr(thing, name) == value for thing in things) for value in values]
        assert min(counts) > 0.7 * len(things) / len(values), name
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)


def test_the_same_seed_gives_the_same_scenes_and_pixels():
    first, second = (free_scene(random.Random(7)) for _ in range(2))
    assert first == second
    assert render(first).tobytes() == render(second).tobytes()
    assert free_scene(random.Random(8)) != first


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_thing_fills_its_box_and_nothing_else(shape, size):
    thing = Thing(shape, "red", size, 30, 25)
    picture = pixels(Scene((thing,), "white"))
    painted = (picture != BACKGROUNDS["white"]).any(axis=2)
    left, top, right, bottom = thing.box
    assert right - left == bottom - top == SIZES[size]
    inside = np.zeros((SIDE, SIDE), bool)
    inside[top:bottom, left:right] = True
    assert not (painted & ~inside).any()
    rows, columns = np.flatnonzero(painted.any(axis=1)), np.flatnonzero(painted.any(axis=0))
    edge = 1 if shape == "square" else 0
    assert (rows[0], rows[-1]) == (top + edge, bottom - 1 - edge)
    assert (columns[0], columns[-1]) == (left + edge, right - 1 - edge)
    full = (picture == COLORS["red"]).all(axis=2)
    assert full.sum() > 0.25 * SIZES[size] ** 2
    assert full[25, 30] == (shape != "ring")
    if shape != "triangle":  # the others look the same from all four sides
        crop = painted[top:bottom, left:right]
        assert (crop == np.rot90(crop)).all()


def test_shapes_of_one_size_differ_in_many_pixels():
    for size, extent in SIZES.items():
        masks = {shape: pixels(Scene((Thing(shape, "blue", size, 32, 32),))) for shape in SHAPES}
        for a, b in itertools.combinations(SHAPES, 2):
            differing = (np.abs(masks[a] - masks[b]).max(axis=2) > 100).sum()
            assert differing > 0.11 * extent**2, (a, b, size)


def test_apart_is_measured_along_one_axis():
    a = Thing("circle", "red", "medium", 20, 20)
    touching = Thing("square", "blue", "small", 20 + 8 + 6, 20)
    assert not apart(a, touching)
    assert apart(a, touching, gap=0)
    assert apart(a, Thing("square", "blue", "small", 20 + 8 + 6 + GAP, 20))
    assert apart(a, Thing("square", "blue", "small", 20, 20 + 8 + 6 + GAP))


def test_an_unknown_shape_is_an_error():
    with pytest.raises(ValueError, match="'heart' is not a shape of this world"):
        render(Scene((Thing("heart", "red", "small", 20, 20),)))
