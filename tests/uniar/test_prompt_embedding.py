"""The constant prompt's embedding: kept under all that it depends on, computed where it is not there or damaged."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from uniar import prompt_embedding
from uniar.decoder_parts import encode_prompt
from uniar.modeling_decoder import UniARVisualDecoder
from uniar.prompt_embedding import constant_prompt

PIPELINE = Path(__file__).parents[1] / "golden" / "bsq64" / "ckpt" / "sd3_pipeline"
TYPES = (torch.float32, torch.bfloat16)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where it is kept; `encoded` counts how often the encoders were asked."""
    monkeypatch.setenv("UNIAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prompt_embeddings"


@pytest.fixture
def encoded(monkeypatch):
    asked = []

    def encode(*given):
        asked.append(given)
        return encode_prompt(*given)

    monkeypatch.setattr(prompt_embedding, "encode_prompt", encode)
    return asked


@pytest.fixture
def pipeline(tmp_path):
    return Path(shutil.copytree(PIPELINE, tmp_path / "sd3_pipeline"))


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_kept_has_the_same_bits(cache, encoded, dtype):
    expected = encode_prompt(PIPELINE, "cpu", dtype)
    for _ in range(3):
        same(constant_prompt(PIPELINE, "cpu", dtype), expected)
    assert len(encoded) == len(list(cache.iterdir())) == 1


def test_a_decoder_loads_no_encoder_the_second_time(cache, encoded):
    first, second = (UniARVisualDecoder.from_pretrained(PIPELINE.parent) for _ in range(2))
    same((second.prompt_embeds, second.pooled_prompt_embeds), (first.prompt_embeds, first.pooled_prompt_embeds))
    assert len(encoded) == 1


def halved(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def one_bit(file):
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def without_one(file):
    tensors = load_file(file)
    save_file({"prompt_embeds": tensors["prompt_embeds"]}, file)


def without_digest(file):
    save_file(load_file(file), file)


def nothing(file):
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [halved, one_bit, without_one, without_digest, nothing])
def test_a_damaged_file_is_written_anew(cache, encoded, damage):
    expected = constant_prompt(PIPELINE, "cpu", torch.float32)
    [file] = cache.iterdir()
    whole = file.read_bytes()
    damage(file)
    same(constant_prompt(PIPELINE, "cpu", torch.float32), expected)
    assert len(encoded) == 2
    assert file.read_bytes() == whole


def other_weight(pipeline):
    file = pipeline / "text_encoder_3" / "model.safetensors"
    weights = load_file(file)
    weights["encoder.final_layer_norm.weight"][0] += 1
    save_file(weights, file, metadata={"format": "pt"})


def other_length(pipeline):
    file = pipeline / "tokenizer_3" / "tokenizer_config.json"
    file.write_text(file.read_text().replace("{", '{"max_sequence_length": 32,', 1))


def other_config(pipeline):
    file = pipeline / "text_encoder" / "config.json"
    file.write_text(file.read_text().replace('"layer_norm_eps": 1e-05', '"layer_norm_eps": 0.1'))


@pytest.mark.parametrize("change", [other_weight, other_length, other_config])
def test_another_checkpoint_has_its_own(cache, encoded, pipeline, change):
    before = constant_prompt(pipeline, "cpu", torch.float32)
    change(pipeline)
    after = constant_prompt(pipeline, "cpu", torch.float32)
    same(after, encode_prompt(pipeline, "cpu", torch.float32))
    assert after[0].shape != before[0].shape or not torch.equal(after[0], before[0])
    assert len(encoded) == len(list(cache.iterdir())) == 2


def test_other_code_or_libraries_make_it_anew(cache, encoded, tmp_path, monkeypatch):
    constant_prompt(PIPELINE, "cpu", torch.float32)
    monkeypatch.setattr(prompt_embedding, "version", lambda name: "0")
    constant_prompt(PIPELINE, "cpu", torch.float32)
    (tmp_path / "parts.py").write_text("# other code")
    monkeypatch.setattr(prompt_embedding.decoder_parts, "__file__", str(tmp_path / "parts.py"))
    constant_prompt(PIPELINE, "cpu", torch.float32)
    assert len(encoded) == len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("kind", ["a file in its place", "no home"])
def test_without_a_cache_it_is_computed(cache, encoded, monkeypatch, kind):
    if kind == "no home":
        monkeypatch.delenv("UNIAR_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", lambda: Path("~nobody-of-that-name").expanduser())
    else:
        cache.parent.write_text("")
    for _ in range(2):
        same(constant_prompt(PIPELINE, "cpu", torch.float32), encode_prompt(PIPELINE, "cpu", torch.float32))
    assert len(encoded) == 2
