"""`hpsv2` on tiny random weights in the published file's form, against the formula in float64."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.reference_towers import (
    CLIP_MEAN,
    CLIP_STD,
    cosine,
    open_clip_architecture,
    open_clip_image,
    open_clip_shapes,
    open_clip_text,
    pixels_of,
    random_images,
    random_weights,
)

from rewards import RewardBatch, RewardSuite
from rewards.models.hpsv2 import HPSv2
from rewards.models.pixels import padded
from uniar.errors import UserError

PROMPTS = ["a red cat", "a blue dog", "a red cat", "a red cat"]
SIZES = [(40, 40), (48, 24), (24, 48), (16, 16)]


@pytest.fixture
def architecture(tmp_path):
    with open_clip_architecture(tmp_path) as name:
        yield name


@pytest.fixture
def weights():
    return random_weights(open_clip_shapes())


def published(folder, weights, dtype=torch.float32):
    """The form of HPS_v2.1_compressed.pt."""
    file = folder / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": {name: value.to(dtype) for name, value in weights.items()}}, file)
    return file


def cubic(x):
    """Keys' kernel with a = −1/2."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def resized(pixels, size):
    """(H, W, 3) → (height, width, 3): antialiased bicubic as one matrix per side."""
    for axis, target in enumerate(size):
        source = pixels.shape[axis]
        scale = source / target
        stretch = max(scale, 1)
        matrix = np.array(
            [[cubic((j + 0.5 - (i + 0.5) * scale) / stretch) for j in range(source)] for i in range(target)]
        )
        matrix = torch.tensor(matrix / matrix.sum(1, keepdims=True))
        pixels = torch.tensordot(matrix, pixels.movedim(axis, 0), dims=1).movedim(0, axis)
    return pixels


def pixels_for_hps(image):
    width, height = image.size
    scale = 16 / max(width, height)
    size = (round(height * scale), round(width * scale))
    canvas = torch.zeros(16, 16, 3, dtype=torch.float64)
    top, left = (16 - size[0]) // 2, (16 - size[1]) // 2
    canvas[top : top + size[0], left : left + size[1]] = resized(pixels_of(image), size)
    return (canvas - CLIP_MEAN) / CLIP_STD


def score(batch, **parameters):
    suite = RewardSuite.from_recipe([{"use": "hpsv2", "device": "cpu", **parameters}])
    return suite.score(batch).values[:, 0].tolist()


def test_hpsv2_is_the_cosine_of_the_padded_image(architecture, weights, tmp_path):
    batch = RewardBatch(PROMPTS, random_images(*SIZES))
    w = {name: value.double() for name, value in weights.items()}
    expected = [
        cosine(open_clip_image(pixels_for_hps(image), w), open_clip_text(prompt, w))
        for prompt, image in zip(batch.prompts, batch.images, strict=True)
    ]
    assert max(expected) - min(expected) > 0.03
    found = score(batch, model=architecture, weights=str(published(tmp_path, weights)))
    assert found == pytest.approx(expected, abs=1e-5)
    assert score(batch, model=architecture, weights=str(tmp_path), batch_size=1) == pytest.approx(found, abs=1e-6)


def test_a_half_precision_file_and_half_precision_weights(architecture, weights, tmp_path):
    batch = RewardBatch(PROMPTS, random_images(*SIZES))
    rounded = {name: value.half().float() for name, value in weights.items()}
    (tmp_path / "full").mkdir()
    exact = score(batch, model=architecture, weights=str(published(tmp_path / "full", rounded)))
    file = str(published(tmp_path, weights, torch.float16))
    assert score(batch, model=architecture, weights=file) == exact
    half = score(batch, model=architecture, weights=file, dtype="bfloat16")
    assert half == pytest.approx(exact, abs=0.03)
    assert half != exact


def test_padding_is_black_and_in_the_middle():
    white = Image.new("RGB", (20, 10), "white")
    pixels = padded([white], 20)[0] * CLIP_STD.float()[:, None, None] + CLIP_MEAN.float()[:, None, None]
    assert pixels[:, 5:15].min() > 1 - 1e-5
    assert pixels[:, :5].abs().max() < 1e-6
    assert pixels[:, 15:].abs().max() < 1e-6
    assert padded([Image.new("RGB", (1000, 2))], 20).shape == (1, 3, 20, 20)  # a side never vanishes


def load_error(**parameters):
    with pytest.raises(UserError) as caught:
        RewardSuite.from_recipe([{"use": "hpsv2", "device": "cpu", **parameters}]).load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_wrong_file_names_the_first_wrong_weight(architecture, weights, tmp_path):
    def error(changed):
        return load_error(model=architecture, weights=str(published(tmp_path, changed)))

    assert "it lacks 'visual.proj' (16, 12)" in error({k: v for k, v in weights.items() if k != "visual.proj"})
    assert "'text_projection' is (16, 13), (16, 12) is needed" in error(
        {**weights, "text_projection": torch.zeros(16, 13)}
    )
    assert "which has no 'extra'" in error({**weights, "extra": torch.zeros(1)})


def test_where_the_weights_are_looked_for(tmp_path):
    assert f"weight file {tmp_path / 'no.pt'} does not exist" in load_error(weights=str(tmp_path / "no.pt"))
    assert f"folder {tmp_path} has no HPS_v2.1_compressed.pt" in load_error(weights=str(tmp_path))
    message = load_error()  # the tests run offline
    assert "xswu/HPSv2 is neither a file nor a folder here, and HPS_v2.1_compressed.pt cannot be downloaded" in message
    assert HPSv2().architecture == "ViT-H-14"
