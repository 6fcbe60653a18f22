"""`color` and `compressibility` against images whose score is known."""

import io
import math

import pytest
from PIL import Image

from rewards import RewardBatch, RewardError, RewardSuite
from rewards.color import Color, parse_color
from uniar.errors import UserError


def scores(entry, images, metadata=None):
    batch = RewardBatch(["p"] * len(images), images, metadata=metadata)
    return RewardSuite.from_recipe([entry]).score(batch).values[:, 0].tolist()


def plain(color, size=(16, 16)):
    return Image.new("RGB", size, color)


def test_color_is_the_share_of_pixels():
    stripes = plain("blue", (10, 4))
    stripes.paste((255, 0, 0), (0, 0, 3, 4))
    assert scores({"use": "color", "color": "red"}, [plain("red"), plain("blue"), stripes]) == [1.0, 0.0, 0.3]
    assert scores({"use": "color", "color": "#0000ff"}, [stripes]) == [0.7]


def test_color_distance_is_euclidean_with_black_to_white_as_one():
    # (139, 0, 0) is 116 from red: 116 / (255 √3) = 0.26264
    images = [plain((139, 0, 0))]
    assert scores({"use": "color", "color": "red", "tolerance": 0.2627}, images) == [1.0]
    assert scores({"use": "color", "color": "red", "tolerance": 0.2626}, images) == [0.0]
    assert scores({"use": "color", "color": "black", "tolerance": 0.9999}, [plain("white")]) == [0.0]
    assert scores({"use": "color", "color": "black", "tolerance": 1.0001}, [plain("white")]) == [1.0]


def test_color_softness_fades_out_beyond_the_tolerance():
    distance = 116 / (255 * math.sqrt(3))
    entry = {"use": "color", "color": "red", "tolerance": 0.1, "softness": 0.5}
    [score] = scores(entry, [plain((139, 0, 0))])
    assert score == pytest.approx(1 - (distance - 0.1) / 0.5, abs=1e-5)
    # Whatever is nearer scores higher, even where the hard share is 0 throughout: something to climb.
    climb = scores(entry, [plain((value, 255 - value, 0)) for value in (60, 120, 180, 240)])
    assert climb == sorted(climb)
    assert climb[0] < climb[1] < climb[2] < climb[3] <= 1


def test_color_from_metadata_applies_only_where_there_is_one():
    metadata = [{"color": "red"}, {"color": "blue"}, {}]
    values = scores("color", [plain("red")] * 3, metadata)
    assert values[:2] == [1.0, 0.0]
    assert math.isnan(values[2])


def test_color_takes_gray_and_transparent_images():
    assert (
        scores({"use": "color", "color": "white"}, [Image.new("L", (4, 4), 255), Image.new("RGBA", (4, 4), "white")])[0]
        == 1.0
    )


@pytest.mark.parametrize("name", ["gren", "", "#12", 3])
def test_color_refuses_what_is_no_color(name):
    with pytest.raises(UserError, match="is not a colour; a CSS colour name or '#rrggbb' is needed"):
        parse_color(name)


def test_color_errors_name_the_parameter_or_the_sample():
    with pytest.raises(UserError, match=r"reward 'color': 'gren' is not a colour.*Did you mean 'green'"):
        RewardSuite.from_recipe([{"use": "color", "color": "gren"}])
    with pytest.raises(UserError, match="cannot be negative"):
        Color("red", softness=-1.0)
    with pytest.raises(RewardError, match=r"reward 'color' failed: 'rde' is not a colour.* on sample 1") as caught:
        scores("color", [plain("red")] * 2, [{"color": "red"}, {"color": "rde"}])
    assert caught.value.index == 1


def test_compressibility_is_minus_the_size_of_the_file(tmp_path):
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    images = [plain("red", (64, 64)), noise]
    for quality in (95, 40):
        sizes = []
        for number, image in enumerate(images):
            file = tmp_path / f"{number}.jpg"
            image.save(file, quality=quality)
            sizes.append(file.stat().st_size / 1000)
        assert scores({"use": "compressibility", "quality": quality}, images) == [-size for size in sizes]
        assert scores({"use": "compressibility", "quality": quality, "sign": 1}, images) == sizes
        assert sizes[0] < sizes[1]
    [transparent] = scores("compressibility", [Image.new("RGBA", (8, 8), "red")])
    buffer = io.BytesIO()
    plain("red", (8, 8)).save(buffer, "JPEG", quality=95)
    assert transparent == -len(buffer.getvalue()) / 1000


def test_compressibility_refuses_other_qualities_and_signs():
    with pytest.raises(UserError, match="quality is 0; JPEG qualities go from 1 to 95"):
        RewardSuite.from_recipe([{"use": "compressibility", "quality": 0}])
    with pytest.raises(UserError, match="sign is 2, -1 or 1 is needed"):
        RewardSuite.from_recipe([{"use": "compressibility", "sign": 2}])
