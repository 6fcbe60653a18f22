"""`aesthetic` on tiny random weights with the published names of the head, against the formula in float64."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.reference_towers import (
    TINY_OPEN_CLIP,
    clip_center_crop,
    head_shapes,
    linear_head,
    open_clip_architecture,
    open_clip_image,
    open_clip_shapes,
    pixels_of,
    random_images,
    random_weights,
)

from rewards import RewardBatch, RewardSuite
from rewards.models.aesthetic import Aesthetic
from uniar.errors import UserError

SIZES = [(16, 16), (44, 32), (32, 44), (64, 64)]
V2 = [f"layers.{number}" for number in (0, 2, 4, 6, 7)]
V25 = [f"scoring_head.{number}" for number in (0, 2, 4, 6, 8)]


@pytest.fixture
def clip(tmp_path):
    weights = random_weights(open_clip_shapes())
    save_file(weights, tmp_path / "clip.safetensors")
    with open_clip_architecture(tmp_path) as name:
        yield {"model": name, "model_weights": str(tmp_path / "clip.safetensors")}, weights


def head(names, features=TINY_OPEN_CLIP["embed_dim"]):
    return random_weights(head_shapes(names, features), seed=2, std=0.2)


def score(batch, **parameters):
    suite = RewardSuite.from_recipe([{"use": "aesthetic", "device": "cpu", **parameters}])
    return suite.score(batch).values[:, 0].tolist()


@pytest.mark.parametrize("names", [V2, V25])
def test_aesthetic_is_the_head_on_the_feature_of_length_one(clip, names, tmp_path):
    settings, weights = clip
    batch = RewardBatch(["what it shows does not matter"] * 4, random_images(*SIZES))
    torch.save(head(names), tmp_path / "aesthetic-model.pth")
    w = {name: value.double() for name, value in (weights | head(names)).items()}
    expected = []
    for image in batch.images:
        feature = open_clip_image(clip_center_crop(image, 16), w)
        expected.append(linear_head(feature / feature.norm(), w, names))
    spread = max(expected) - min(expected)
    assert spread > 0.1
    found = score(batch, weights=str(tmp_path), **settings)
    assert found == pytest.approx(expected, abs=1e-4 * spread)
    one_by_one = score(batch, weights=str(tmp_path / "aesthetic-model.pth"), batch_size=1, **settings)
    assert one_by_one == pytest.approx(found, abs=1e-4 * spread)
    half = score(batch, weights=str(tmp_path), dtype="bfloat16", **settings)
    assert half == pytest.approx(found, abs=0.1 * spread)
    assert half != found


def test_a_siglip_tower(tmp_path):
    """A tower of another kind, width and preprocessing: timm's, pooled by attention, as the predictor v2.5 has it."""
    import open_clip

    config = {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 32, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": TINY_OPEN_CLIP["text_cfg"],
        "custom_text": True,
    }
    half = [0.5, 0.5, 0.5]
    look = {"mean": half, "std": half, "interpolation": "bicubic", "resize_mode": "squash"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": look}))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{tmp_path}", load_weights=False).eval()
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, tmp_path / "open_clip_model.safetensors")
    torch.save(head(V25, 64), tmp_path / "head.pth")
    batch = RewardBatch(["p"] * 2, random_images((32, 32), (50, 40)))
    found = score(batch, weights=str(tmp_path / "head.pth"), model=f"local-dir:{tmp_path}", model_weights=None)

    w = {name: value.double() for name, value in head(V25, 64).items()}
    for image, value in zip(batch.images, found, strict=True):
        pixels = pixels_of(image.resize((32, 32), Image.Resampling.BICUBIC)).permute(2, 0, 1)[None] * 2 - 1
        with torch.no_grad():
            feature = model.encode_image(pixels.float())[0].double()
        assert value == pytest.approx(linear_head(feature / feature.norm(), w, V25), rel=1e-3)
    assert abs(found[0] - found[1]) > 1e-2 * abs(found[0])


def load_error(**parameters):
    with pytest.raises(UserError) as caught:
        RewardSuite.from_recipe([{"use": "aesthetic", "device": "cpu", **parameters}]).load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_wrong_head_names_the_first_wrong_weight(clip, tmp_path):
    settings, _ = clip
    file = tmp_path / "head.pth"

    def error(changed):
        torch.save(changed, file)
        return load_error(weights=str(file), **settings)

    v2, v25 = head(V2), head(V25)
    about = "not for an aesthetic head on 'tiny-for-tests'"
    assert f"{about}: it lacks 'layers.4.bias' (64,)" in error({k: v for k, v in v2.items() if k != "layers.4.bias"})
    assert f"{about}: it lacks 'scoring_head.8.weight' (1, 16)" in error(
        {k: v for k, v in v25.items() if k != "scoring_head.8.weight"}
    )
    assert f"{about}: 'layers.0.weight' is (1024, 768), (1024, 12) is needed" in error(head(V2, 768))
    assert f"{about}, which has no 'layers.1.weight'" in error({**v2, "layers.1.weight": torch.zeros(1)})


def test_where_the_weights_are_looked_for(clip, tmp_path):
    settings, _ = clip
    assert f"folder {tmp_path} has no aesthetic-model.pth" in load_error(weights=str(tmp_path), **settings)
    assert "aesthetic-model.pth cannot be downloaded from it as a hub id" in load_error()
    assert Aesthetic().source.name == "ViT-L-14"
