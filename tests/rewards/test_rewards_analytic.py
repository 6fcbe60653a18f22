"""`color`, `compressibility`, `sharpness` and `diversity` against images whose score is known."""

import io
import math

import pytest
import torch
from PIL import Image, ImageFilter

from rewards import RewardBatch, RewardError, RewardSuite
from rewards.pixels.color import Color, parse_color
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
    with pytest.raises(UserError, match=r"sign is 2 .*, expected -1 or 1"):
        RewardSuite.from_recipe([{"use": "compressibility", "sign": 2}])


def test_sharpness_is_the_variance_of_the_laplacian():
    assert scores("sharpness", [plain("red")]) == [0.0]
    # One white pixel on black, 5×5: the Laplacian is −1020 there and 255 at its four neighbours, of 9 inner pixels.
    dot = plain("black", (5, 5))
    dot.putpixel((2, 2), (255, 255, 255))
    values = [-1020, 255, 255, 255, 255, 0, 0, 0, 0]
    mean = sum(values) / 9
    [score] = scores("sharpness", [dot])
    assert score == pytest.approx(sum((value - mean) ** 2 for value in values) / 9)
    # Grey weighs green most: a green dot counts 0.587² of a white one.
    green = plain("black", (5, 5))
    green.putpixel((2, 2), (0, 255, 0))
    assert scores("sharpness", [green]) == pytest.approx([0.587**2 * score])
    # A ramp has no curvature; blur lowers the score, noise raises it.
    ramp = Image.linear_gradient("L")
    assert scores("sharpness", [ramp])[0] < 1
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    blurred = noise.filter(ImageFilter.GaussianBlur(1))
    assert scores("sharpness", [noise])[0] > 10 * scores("sharpness", [blurred])[0] > 0


def test_sharpness_needs_inner_pixels():
    with pytest.raises(RewardError, match=r"an image of 16×2 has no inner pixels .* on sample 1"):
        scores("sharpness", [plain("red"), plain("red", (16, 2))])


def diversity(prompts, images=None, bits=None, **parameters):
    images = images or [plain("red")] * len(prompts)
    suite = RewardSuite.from_recipe([{"use": "diversity", **parameters}])
    return suite.score(RewardBatch(prompts, images, bits=bits)).values[:, 0].tolist()


def test_diversity_is_the_mean_distance_to_the_others_of_the_prompt():
    images = [plain("black"), plain("red"), plain("white"), plain((0, 0, 51)), plain("blue")]
    found = diversity(["a", "b", "a", "a", "alone"], images)
    # Black to white is 1, black to dark blue 0.2/3, white to dark blue 1 − 0.2/3.
    dark = 0.2 / 3
    expected = [(1 + dark) / 2, (1 + 1 - dark) / 2, (dark + 1 - dark) / 2]
    assert [found[0], found[2], found[3]] == pytest.approx(expected, abs=1e-6)
    assert math.isnan(found[1])
    assert math.isnan(found[4])
    # The mean over a prompt's samples is the mean over its pairs.
    assert sum(expected) / 3 == pytest.approx((1 + dark + 1 - dark) / 3)
    assert diversity(["a"] * 3) == [0.0] * 3


def test_diversity_of_images_looks_at_thumbnails():
    left = plain("black", (64, 64))
    left.paste("white", (0, 0, 32, 64))
    right = plain("white", (32, 32))
    right.paste("black", (0, 0, 16, 32))
    assert diversity(["a", "a"], [left, right]) == [1.0, 1.0]  # sizes need not agree
    assert diversity(["a", "a"], [left, right], size=1) == [0.0, 0.0]


def test_diversity_of_bits_is_the_share_that_differs():
    bits = torch.zeros(4, 2, 1, 4, 4, dtype=torch.uint8)
    bits[1, 0, 0, 0] = 1  # 4 of 32
    bits[2] = 1
    found = diversity(["a", "a", "a", "b"], bits=bits, of="bits")
    assert found[:3] == [(4 / 32 + 1) / 2, (4 / 32 + 28 / 32) / 2, (1 + 28 / 32) / 2]
    assert math.isnan(found[3])
    generator = torch.Generator().manual_seed(0)
    many = torch.randint(0, 2, (6, 16, 4, 4, 16), dtype=torch.uint8, generator=generator)
    found = diversity(["a"] * 6, bits=many, of="bits")
    for row in range(6):
        others = [(many[row] != many[other]).double().mean().item() for other in range(6) if other != row]
        assert found[row] == pytest.approx(sum(others) / 5, abs=1e-6)


def test_diversity_says_what_it_lacks():
    with pytest.raises(RewardError, match="needs visual bits, and this batch has none"):
        diversity(["a", "a"], of="bits")
    with pytest.raises(UserError, match=r"of is 'pixels' .*, expected 'images' or 'bits'"):
        diversity(["a"], of="pixels")
    with pytest.raises(UserError, match="size is 0; at least 1 pixel"):
        diversity(["a"], size=0)
    assert RewardSuite.from_recipe(["diversity"]).rewards[0].pointwise is False
