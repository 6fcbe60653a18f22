"""`preservation`: structural similarity against its definition, and what a mask leaves out."""

import math

import numpy as np
import pytest
from PIL import Image

from rewards import RewardBatch, RewardSuite
from rewards.pixels.preservation import ssim_map
from uniar.errors import UserError


def noise(seed, size=(20, 14)):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def scores(images, sources, metadata=None, **parameters):
    batch = RewardBatch(["p"] * len(images), images, metadata=metadata, source_images=sources)
    return RewardSuite.from_recipe([{"use": "preservation", **parameters}]).score(batch).values[:, 0].tolist()


def ssim_at(one, other, row, column):
    """The formula at one pixel, window by window, in plain sums."""
    total = dict.fromkeys(("w", "x", "y", "xx", "yy", "xy"), 0.0)
    grey = [np.asarray(image, dtype=np.float64) @ (0.299, 0.587, 0.114) for image in (one, other)]
    height, width = grey[0].shape

    def mirrored(place, length):
        return -place - 1 if place < 0 else 2 * length - place - 1 if place >= length else place

    for down in range(-5, 6):
        for right in range(-5, 6):
            weight = math.exp(-(down**2 + right**2) / (2 * 1.5**2))
            place = mirrored(row + down, height), mirrored(column + right, width)
            x, y = grey[0][place], grey[1][place]
            for name, value in (("w", 1), ("x", x), ("y", y), ("xx", x * x), ("yy", y * y), ("xy", x * y)):
                total[name] += weight * value
    mean = {name: value / total["w"] for name, value in total.items()}
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    var_x, var_y = mean["xx"] - mean["x"] ** 2, mean["yy"] - mean["y"] ** 2
    cov = mean["xy"] - mean["x"] * mean["y"]
    brightness = (2 * mean["x"] * mean["y"] + c1) / (mean["x"] ** 2 + mean["y"] ** 2 + c1)
    return brightness * (2 * cov + c2) / (var_x + var_y + c2)


def test_ssim_is_its_formula():
    one, other = noise(0), Image.blend(noise(0), noise(1), 0.5)
    found = ssim_map(one, other)
    for place in ((0, 0), (7, 9), (13, 19), (3, 0)):
        assert found[place] == pytest.approx(ssim_at(one, other, *place), abs=1e-9)
    assert np.allclose(ssim_map(one, one), 1)


def test_what_edits_nothing_has_no_score_and_what_changes_nothing_has_one():
    same, other, none = scores([noise(0)] * 3, [[noise(0)], [noise(1)], []])
    assert same == pytest.approx(1)
    assert other < 0.5
    assert math.isnan(none)


def test_a_source_of_another_size_is_resized():
    small = noise(0).resize((10, 7))
    assert scores([small], [[small.resize((20, 14), Image.Resampling.NEAREST)]])[0] > 0.9


def test_what_a_mask_names_does_not_count():
    edited = noise(0, (64, 64))
    edited.paste(noise(1, (32, 32)), (32, 0))
    halves = [[0.42, 0, 0.7, 0.58], [0.6, 0, 1, 0.58]]
    metadata = [{}, {"mask": [[0.42, 0, 1, 0.58]]}, {"mask": halves}, {"mask": [[0, 0, 1, 1]]}]
    nothing, box, boxes, everything = scores([edited] * 4, [[noise(0, (64, 64))]] * 4, metadata)
    assert nothing < 0.9
    assert box > 0.999
    assert boxes == box
    assert math.isnan(everything)
    assert scores([edited], [[noise(0, (64, 64))]], [{"mask": [[0, 0, 1, 1]]}], mask=None) == [pytest.approx(nothing)]


@pytest.mark.parametrize(
    "mask", [[[0, 0, 1]], [[0, 0, 0, 1]], [[0, 0, 20, 20]], 3, [["a"] * 4], {}, [0, 0, 1, 1], "mask.png"]
)
def test_what_is_no_mask_is_found_before_anything_is_loaded(mask):
    reward = RewardSuite.from_recipe(["preservation"]).rewards[0]
    with pytest.raises(UserError, match=r"metadata 'mask' is .*; a list of boxes"):
        reward.check_sample("p", {"mask": mask})
