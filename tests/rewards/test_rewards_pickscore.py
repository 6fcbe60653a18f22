"""`pickscore` on tiny random weights with the published names (transformers' CLIP), against the formula in float64."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from support.reference_towers import (
    attend,
    causal,
    clip_center_crop,
    clip_tokens,
    cosine,
    gelu,
    linear,
    norm,
    patches_of,
    random_images,
    random_weights,
)

from rewards import RewardBatch, RewardError, RewardSuite
from rewards.models.pickscore import PickScore
from uniar.errors import UserError

PROMPTS = ["a red cat", "a blue dog", "a red cat", "word " * 100]
SIZES = [(16, 16), (44, 32), (32, 44), (64, 64)]
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_act": "gelu",
}
CONFIG = {
    "projection_dim": 12,
    "logit_scale_init_value": 2.6592,
    "text_config": {**TOWER, "eos_token_id": 2},  # the published one: read at the largest id
    "vision_config": {**TOWER, "image_size": 16, "patch_size": 8},
}


def shapes():
    named = {
        "logit_scale": (),
        "text_model.embeddings.token_embedding.weight": (49408, 16),
        "text_model.embeddings.position_embedding.weight": (77, 16),
        "vision_model.embeddings.class_embedding": (16,),
        "vision_model.embeddings.patch_embedding.weight": (16, 3, 8, 8),
        "vision_model.embeddings.position_embedding.weight": (5, 16),
        "visual_projection.weight": (12, 16),
        "text_projection.weight": (12, 16),
    }
    for name in ("text_model.final_layer_norm", "vision_model.pre_layrnorm", "vision_model.post_layernorm"):
        named |= {f"{name}.weight": (16,), f"{name}.bias": (16,)}
    for tower in ("text_model", "vision_model"):
        for layer in (0, 1):
            at = f"{tower}.encoder.layers.{layer}"
            for part, shape in (("weight", (16, 16)), ("bias", (16,))):
                named |= {f"{at}.self_attn.{x}_proj.{part}": shape for x in ("q", "k", "v", "out")}
            for part in ("weight", "bias"):
                named |= {f"{at}.layer_norm{n}.{part}": (16,) for n in (1, 2)}
            named |= {f"{at}.mlp.fc1.weight": (24, 16), f"{at}.mlp.fc1.bias": (24,)}
            named |= {f"{at}.mlp.fc2.weight": (16, 24), f"{at}.mlp.fc2.bias": (16,)}
    return named


@pytest.fixture
def weights():
    found = random_weights(shapes())
    return {**found, "logit_scale": torch.tensor(4.6)}


@pytest.fixture
def folder(weights, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(weights, tmp_path / "model.safetensors")
    return tmp_path


def blocks(x, w, tower, mask=None):
    for layer in (0, 1):
        at = f"{tower}.encoder.layers.{layer}"
        h = norm(x, w, f"{at}.layer_norm1")
        q, k, v = (linear(h, w, f"{at}.self_attn.{name}_proj") for name in "qkv")
        x = x + linear(attend(q, k, v, 2, mask), w, f"{at}.self_attn.out_proj")
        h = norm(x, w, f"{at}.layer_norm2")
        x = x + linear(gelu(linear(h, w, f"{at}.mlp.fc1")), w, f"{at}.mlp.fc2")
    return x


def expected_scores(batch, weights):
    w = {name: value.double() for name, value in weights.items()}
    scores = []
    for prompt, image in zip(batch.prompts, batch.images, strict=True):
        at = "vision_model.embeddings"
        x = patches_of(clip_center_crop(image, 16), 8) @ w[f"{at}.patch_embedding.weight"].flatten(1).T
        x = torch.cat([w[f"{at}.class_embedding"][None], x]) + w[f"{at}.position_embedding.weight"]
        x = blocks(norm(x, w, "vision_model.pre_layrnorm"), w, "vision_model")
        pictured = norm(x, w, "vision_model.post_layernorm")[0] @ w["visual_projection.weight"].T
        tokens = clip_tokens(prompt, 77)
        at = "text_model.embeddings"
        x = w[f"{at}.token_embedding.weight"][tokens] + w[f"{at}.position_embedding.weight"][: len(tokens)]
        x = norm(blocks(x, w, "text_model", causal(len(tokens))), w, "text_model.final_layer_norm")
        said = x[-1] @ w["text_projection.weight"].T
        scores.append(math.exp(4.6) * cosine(pictured, said))
    return scores


def score(batch, **parameters):
    suite = RewardSuite.from_recipe([{"use": "pickscore", "device": "cpu", **parameters}])
    return suite.score(batch).values[:, 0].tolist()


def test_pickscore_is_the_scaled_cosine(folder, weights):
    batch = RewardBatch(PROMPTS, random_images(*SIZES))
    expected = expected_scores(batch, weights)
    assert max(expected) - min(expected) > 1
    found = score(batch, weights=str(folder))
    assert found == pytest.approx(expected, abs=1e-3)
    assert score(batch, weights=str(folder), batch_size=1) == pytest.approx(found, abs=1e-3)


def test_older_files_load_too(folder, weights):
    """pytorch_model.bin, with the position buffers that transformers saved then."""
    batch = RewardBatch(PROMPTS, random_images(*SIZES))
    found = score(batch, weights=str(folder))
    (folder / "model.safetensors").unlink()
    old = {
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "vision_model.embeddings.position_ids": torch.arange(5)[None],
    }
    torch.save({**weights, **old}, folder / "pytorch_model.bin")
    assert score(batch, weights=str(folder)) == found
    # Configs of today name the end token itself, instead of reading at the largest id.
    config = {**CONFIG, "text_config": {**TOWER, "eos_token_id": 49407}}
    (folder / "config.json").write_text(json.dumps(config))
    assert score(batch, weights=str(folder)) == found


def test_half_precision_stays_near(folder):
    batch = RewardBatch(PROMPTS, random_images(*SIZES))
    exact = score(batch, weights=str(folder))
    half = score(batch, weights=str(folder), dtype="bfloat16")
    assert half == pytest.approx(exact, abs=1)
    assert half != exact


def load_error(**parameters):
    with pytest.raises(UserError) as caught:
        RewardSuite.from_recipe([{"use": "pickscore", "device": "cpu", **parameters}]).load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_wrong_file_names_the_first_wrong_weight(folder, weights):
    def error(changed):
        save_file(changed, folder / "model.safetensors")
        return load_error(weights=str(folder))

    lacking = {name: value for name, value in weights.items() if name != "visual_projection.weight"}
    assert "not for PickScore's CLIP: it lacks 'visual_projection.weight' (12, 16)" in error(lacking)
    wrong = {**weights, "text_projection.weight": torch.zeros(12, 8)}
    assert "'text_projection.weight' is (12, 8), (12, 16) is needed" in error(wrong)
    assert "which has no 'head.weight'" in error({**weights, "head.weight": torch.zeros(1)})
    # A file alone is taken for the published sizes.
    save_file(weights, folder / "model.safetensors")
    message = load_error(weights=str(folder / "model.safetensors"))
    assert "'text_model.embeddings.token_embedding.weight' is (49408, 16), (49408, 1024) is needed" in message


def test_where_the_weights_are_looked_for(tmp_path):
    assert f"folder {tmp_path} has no config.json" in load_error(weights=str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert f"folder {tmp_path} has no model.safetensors or pytorch_model.bin" in load_error(weights=str(tmp_path))
    refused = "yuvalkirstain/PickScore_v1 is neither a file nor a folder here, and config.json cannot be downloaded"
    assert refused in load_error()


def test_a_model_that_overflows_is_an_error_not_a_missing_score(folder, weights):
    """NaN from a model must not pass for "does not apply"."""
    broken = {**weights, "visual_projection.weight": torch.full((12, 16), math.inf)}
    save_file(broken, folder / "model.safetensors")
    batch = RewardBatch(PROMPTS, random_images(*SIZES))
    with pytest.raises(RewardError, match="the model gave NaN or an infinity; with dtype float16, try bfloat16"):
        score(batch, weights=str(folder))


def test_to_moves_the_weights(folder):
    reward = PickScore(str(folder))
    reward.to("cpu")
    reward.load()
    reward.to("meta")  # stands for a GPU here
    assert {parameter.device.type for parameter in reward._model.parameters()} == {"meta"}
