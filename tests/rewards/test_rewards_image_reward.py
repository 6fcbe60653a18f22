"""`image_reward` on tiny random weights with the names of ImageReward.pt, against the formula in float64."""

import math

import pytest
import torch
from support.reference_towers import (
    attend,
    clip_center_crop,
    gelu,
    head_shapes,
    linear,
    linear_head,
    norm,
    patches_of,
    random_images,
    random_weights,
)

from rewards import RewardBatch, RewardSuite
from rewards.models.blip import LARGE, MED, BlipReward, published_name
from rewards.models.image_reward import ImageReward
from uniar.errors import UserError

PROMPTS = ["a red cat", "a dog", "a red cat on a dog", "cat " * 60]
SIZES = [(16, 16), (44, 32), (32, 44), (64, 64)]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "dog", "on", "##s"]
VISION = {**LARGE, "image_size": 16, "patch_size": 8, "hidden_size": 16, "intermediate_size": 24}
VISION |= {"num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**MED, "vocab_size": 14, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2}
TEXT |= {"num_attention_heads": 3, "max_position_embeddings": 40}
HEAD = [f"mlp.layers.{number}" for number in (0, 2, 4, 6, 7)]


def both(name, shape, bias):
    return {f"{name}.weight": shape, f"{name}.bias": (bias,)}


def shapes():
    eye, pen = "blip.visual_encoder", "blip.text_encoder"
    named = {f"{eye}.cls_token": (1, 1, 16), f"{eye}.pos_embed": (1, 5, 16)}
    named |= both(f"{eye}.patch_embed.proj", (16, 3, 8, 8), 16) | both(f"{eye}.norm", (16,), 16)
    for layer in (0, 1):
        at = f"{eye}.blocks.{layer}"
        named |= both(f"{at}.norm1", (16,), 16) | both(f"{at}.norm2", (16,), 16)
        named |= both(f"{at}.attn.qkv", (48, 16), 48) | both(f"{at}.attn.proj", (16, 16), 16)
        named |= both(f"{at}.mlp.fc1", (24, 16), 24) | both(f"{at}.mlp.fc2", (16, 24), 16)
    named |= {f"{pen}.embeddings.word_embeddings.weight": (14, 12)}
    named |= {f"{pen}.embeddings.position_embeddings.weight": (40, 12)}
    named |= both(f"{pen}.embeddings.LayerNorm", (12,), 12)
    for layer in (0, 1):
        at = f"{pen}.encoder.layer.{layer}"
        for kind, width in (("attention", 12), ("crossattention", 16)):
            named |= both(f"{at}.{kind}.self.query", (12, 12), 12)
            named |= both(f"{at}.{kind}.self.key", (12, width), 12) | both(f"{at}.{kind}.self.value", (12, width), 12)
            named |= both(f"{at}.{kind}.output.dense", (12, 12), 12)
            named |= both(f"{at}.{kind}.output.LayerNorm", (12,), 12)
        named |= both(f"{at}.intermediate.dense", (20, 12), 20) | both(f"{at}.output.dense", (12, 20), 12)
        named |= both(f"{at}.output.LayerNorm", (12,), 12)
    return named | head_shapes(HEAD, 12)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(ImageReward, "vision", VISION)
    monkeypatch.setattr(ImageReward, "text", TEXT)


@pytest.fixture
def weights():
    return random_weights(shapes())


@pytest.fixture
def folder(weights, tmp_path):
    unused = {
        "blip.text_encoder.embeddings.position_ids": torch.arange(40)[None],
        "blip.vision_proj.weight": torch.zeros(4, 16),
        "blip.vision_proj.bias": torch.zeros(4),
        "blip.text_proj.weight": torch.zeros(4, 12),
        "blip.text_proj.bias": torch.zeros(4),
    }
    torch.save({**weights, **unused}, tmp_path / "ImageReward.pt")
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return tmp_path


def seen(image, w):
    """(patches + 1, 16): BLIP's ViT, timm's epsilon."""
    eye = "blip.visual_encoder"
    kernel = w[f"{eye}.patch_embed.proj.weight"].flatten(1)
    x = patches_of(clip_center_crop(image, 16), 8) @ kernel.T + w[f"{eye}.patch_embed.proj.bias"]
    x = torch.cat([w[f"{eye}.cls_token"][0], x]) + w[f"{eye}.pos_embed"][0]
    for layer in (0, 1):
        at = f"{eye}.blocks.{layer}"
        q, k, v = linear(norm(x, w, f"{at}.norm1", 1e-6), w, f"{at}.attn.qkv").chunk(3, dim=-1)
        x = x + linear(attend(q, k, v, 2), w, f"{at}.attn.proj")
        x = x + linear(gelu(linear(norm(x, w, f"{at}.norm2", 1e-6), w, f"{at}.mlp.fc1")), w, f"{at}.mlp.fc2")
    return norm(x, w, f"{eye}.norm", 1e-6)


def read_against(tokens, patches, w):
    """(tokens, 12): BERT with post-norm, cross-attention behind each self-attention. No padding: it is masked."""
    pen = "blip.text_encoder"
    x = w[f"{pen}.embeddings.word_embeddings.weight"][tokens]
    x = x + w[f"{pen}.embeddings.position_embeddings.weight"][: len(tokens)]
    x = norm(x, w, f"{pen}.embeddings.LayerNorm", 1e-12)
    for layer in (0, 1):
        at = f"{pen}.encoder.layer.{layer}"
        for kind in ("attention", "crossattention"):
            source = x if kind == "attention" else patches
            q = linear(x, w, f"{at}.{kind}.self.query")
            k, v = (linear(source, w, f"{at}.{kind}.self.{name}") for name in ("key", "value"))
            x = x + linear(attend(q, k, v, 3), w, f"{at}.{kind}.output.dense")
            x = norm(x, w, f"{at}.{kind}.output.LayerNorm", 1e-12)
        x = x + linear(gelu(linear(x, w, f"{at}.intermediate.dense")), w, f"{at}.output.dense")
        x = norm(x, w, f"{at}.output.LayerNorm", 1e-12)
    return x


def expected_scores(batch, weights):
    w = {name: value.double() for name, value in weights.items()}
    scores = []
    for prompt, image in zip(batch.prompts, batch.images, strict=True):
        tokens = [2, *[VOCABULARY.index(word) for word in prompt.split()][:33], 3]
        raw = linear_head(read_against(tokens, seen(image, w), w)[0], w, HEAD)
        scores.append((raw - 0.16717362830052426) / 1.0333394966054072)
    return scores


def score(batch, **parameters):
    suite = RewardSuite.from_recipe([{"use": "image_reward", "device": "cpu", **parameters}])
    return suite.score(batch).values[:, 0].tolist()


def test_image_reward_is_the_formula(folder, weights):
    batch = RewardBatch(PROMPTS, random_images(*SIZES))
    expected = expected_scores(batch, weights)
    spread = max(expected) - min(expected)
    assert spread > 1
    found = score(batch, weights=str(folder), vocabulary=str(folder))
    assert found == pytest.approx(expected, abs=1e-4 * spread)
    files = {"weights": str(folder / "ImageReward.pt"), "vocabulary": str(folder / "vocab.txt")}
    assert score(batch, **files, batch_size=3) == pytest.approx(found, abs=1e-4 * spread)
    half = score(batch, **files, dtype="bfloat16")
    assert half == pytest.approx(found, abs=0.2 * spread)
    assert half != found


def test_the_order_of_image_and_text_matters(folder):
    """The text reads this image, not the average of the batch."""
    images = random_images(*SIZES)
    settings = {"weights": str(folder), "vocabulary": str(folder)}
    forwards = score(RewardBatch(["a cat"] * 4, images), **settings)
    backwards = score(RewardBatch(["a cat"] * 4, images[::-1]), **settings)
    assert forwards == pytest.approx(backwards[::-1], rel=1e-4)
    assert len({round(value, 3) for value in forwards}) == 4


def test_the_published_sizes():
    with torch.device("meta"):
        model = BlipReward(LARGE, MED)
    published = {published_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert published["blip.visual_encoder.blocks.23.attn.qkv.weight"] == (3072, 1024)
    assert published["blip.visual_encoder.pos_embed"] == (1, 197, 1024)
    assert published["blip.text_encoder.encoder.layer.11.crossattention.self.key.weight"] == (768, 1024)
    assert published["blip.text_encoder.embeddings.word_embeddings.weight"] == (30524, 768)
    assert published["mlp.layers.7.weight"] == (1, 16)
    assert sum(math.prod(shape) for shape in published.values()) == pytest.approx(446e6, rel=0.01)


def load_error(**parameters):
    with pytest.raises(UserError) as caught:
        RewardSuite.from_recipe([{"use": "image_reward", "device": "cpu", **parameters}]).load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_wrong_file_names_the_first_wrong_weight(folder, weights):
    def error(changed):
        torch.save(changed, folder / "ImageReward.pt")
        return load_error(weights=str(folder), vocabulary=str(folder))

    name = "blip.visual_encoder.blocks.1.attn.qkv.weight"
    assert f"not for ImageReward: it lacks '{name}' (48, 16)" in error({k: v for k, v in weights.items() if k != name})
    name = "blip.text_encoder.encoder.layer.0.crossattention.self.key.weight"
    assert f"'{name}' is (12, 12), (12, 16) is needed" in error({**weights, name: torch.zeros(12, 12)})
    assert "which has no 'blip.itm_head.weight'" in error({**weights, "blip.itm_head.weight": torch.zeros(2, 12)})


def test_where_weights_and_vocabulary_are_looked_for(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    assert f"folder {empty} has no ImageReward.pt" in load_error(weights=str(empty))
    assert f"folder {empty} has no vocab.txt" in load_error(weights=str(folder), vocabulary=str(empty))
    assert "ImageReward.pt cannot be downloaded from it as a hub id" in load_error()
