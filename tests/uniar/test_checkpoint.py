"""The checkpoint folder: the layout and keys that the reference writes and reads, and strict loading."""

import errno
import filecmp
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from uniar.checkpoint import DECODER_PARTS, copy_untrained_parts, require_parts, resolve_checkpoint
from uniar.configuration_uniar import UniARConfig, UniARVisionConfig
from uniar.errors import UserError
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.modeling_vision import UniARVisionModel

VARIANTS = ["bsq8", "bsq64", "bsq8_novd"]
# What transformers 5 adds; 4.57 keeps keys that it does not know and reads none of these.
ADDED = {"text_config.rope_parameters", "text_config.pad_token_id", "text_config.dtype", "vision_config.dtype"}


@pytest.fixture
def checkpoint(golden, tmp_path) -> Path:
    """A copy of the golden checkpoint that the test may damage."""
    return Path(shutil.copytree(golden("bsq8").checkpoint, tmp_path / "checkpoint"))


def layout(folder):
    """(shape, dtype) of each stored tensor."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                piece = tensors.get_slice(name)
                found[name] = (tuple(piece.get_shape()), piece.get_dtype())
    return found


def flat(mapping, prefix=""):
    found = {}
    for key, value in mapping.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def read(path):
    return json.loads(path.read_text())


def edit(path, **changes):
    path.write_text(json.dumps(read(path) | changes))


def load(folder, **settings):
    return UniARForConditionalGeneration.from_pretrained(folder, **settings)


def text_logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 20)[None]).logits


# What is written is what the reference reads


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_model_has_the_reference_layout(golden, variant, tmp_path):
    original = golden(variant).checkpoint
    model = load(original)  # in the dtype of the file
    assert model.dtype == torch.bfloat16
    model.save_pretrained(tmp_path)
    assert layout(tmp_path) == layout(original)
    stored, again = load_file(original / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(stored[name], again[name]) for name in stored)

    expected, found = flat(read(original / "config.json")), flat(read(tmp_path / "config.json"))
    expected.pop("transformers_version"), found.pop("transformers_version")
    assert expected == {key: value for key, value in found.items() if key in expected}
    assert all(any(key.startswith(added) for added in ADDED) for key in set(found) - set(expected))
    expected, found = read(original / "generation_config.json"), read(tmp_path / "generation_config.json")
    expected.pop("transformers_version"), found.pop("transformers_version")
    assert found == expected


@pytest.mark.parametrize("variant", ["bsq8", "bsq64"])
def test_saved_tokenizer_tower_has_the_reference_layout(golden, variant, tmp_path):
    original = golden(variant).checkpoint / "bsq_encoder"
    UniARVisionModel.from_pretrained(original).save_pretrained(tmp_path)
    assert layout(tmp_path) == layout(original)
    expected, found = read(original / "config.json"), read(tmp_path / "config.json")
    expected.pop("transformers_version"), found.pop("transformers_version")
    assert found == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_rotary_settings_survive_both_ways(golden, variant, tmp_path):
    """4.57 reads rope_theta and rope_scaling, 5 reads rope_parameters; each file has both, and they agree."""
    folder = golden(variant).checkpoint
    for _ in range(2):
        config = UniARConfig.from_pretrained(folder)
        wanted = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True}
        assert config.text_config.rope_parameters == wanted | {"rope_theta": 5e6}
        config.save_pretrained(tmp_path)
        written = read(tmp_path / "config.json")["text_config"]
        assert written["rope_theta"] == 5e6
        assert written["rope_scaling"] == wanted
        folder = tmp_path
    assert config.to_dict()["text_config"]["rope_scaling"] == wanted


def test_default_configs_are_the_documented_ones():
    """docs/checkpoint-format.md, 2."""
    config = UniARConfig()
    assert isinstance(config.vision_config, UniARVisionConfig)
    assert (config.image_token_id, config.video_token_id) == (151655, 151656)
    assert (config.vision_start_token_id, config.vision_end_token_id) == (151652, 151653)
    flags = ("vistok_pred", "vistok_pred_layernorm", "vistok_pred_use_mlp", "visual_transformer_decoder")
    assert not any(getattr(config, flag) for flag in (*flags, "tie_word_embeddings"))
    assert config.visual_transformer_decoder_depth == 4
    assert UniARConfig.from_dict(json.loads(config.to_json_string())).to_dict() == config.to_dict()


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_model_draws_and_reads_the_same(golden, variant, tmp_path):
    model = golden(variant).model()
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    again = load(tmp_path, torch_dtype=torch.float32)
    assert torch.equal(text_logits(again), text_logits(model))
    bits = golden(variant).tensors("vistok_forward")["codes"]
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            again.model.visual.language_features(bits), model.model.visual.language_features(bits), strict=True
        )
    )
    weights = dict(again.state_dict())
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


def test_dtype_and_attention_as_asked(golden):
    folder = golden("bsq8").checkpoint
    for name in ("torch_dtype", "dtype"):
        model = load(folder, **{name: torch.float32}, attn_implementation="eager")
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert model.config.text_config._attn_implementation == "eager"
        assert model.model.visual.config._attn_implementation == "eager"
    assert load(folder, torch_dtype="auto").dtype == torch.bfloat16


def test_both_copies_of_the_tower_are_kept_apart(golden):
    folder = golden("bsq8").checkpoint
    own, decoders = load(folder).model.visual, UniARVisionModel.from_pretrained(folder / "bsq_encoder")
    by_subfolder = UniARVisionModel.from_pretrained(folder, subfolder="bsq_encoder")
    assert set(own.state_dict()) == set(decoders.state_dict())
    assert not torch.equal(own.bsq_input_proj.linear_fc1.weight, decoders.bsq_input_proj.linear_fc1.weight)
    weights = decoders.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in by_subfolder.state_dict().items())


def test_tied_embeddings(golden, tmp_path):
    config = UniARConfig.from_pretrained(golden("bsq8").checkpoint)
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    model = UniARForConditionalGeneration(config)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in layout(tmp_path)
    again = load(tmp_path, torch_dtype=torch.float32)
    assert again.lm_head.weight is again.get_input_embeddings().weight
    assert torch.equal(text_logits(again), text_logits(model.eval()))
    again.set_trainable()
    assert again.get_input_embeddings().weight.requires_grad  # trained, though lm_head alone would be frozen


# What is copied


def test_untrained_parts_are_copied_byte_for_byte(golden, tmp_path):
    source = golden("bsq8").checkpoint
    copy_untrained_parts(source, tmp_path)
    copied = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    written_by_the_model = {Path("config.json"), Path("generation_config.json"), Path("model.safetensors")}
    files = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    assert copied == files - written_by_the_model
    assert {Path("tokenizer.json"), Path("chat_template.jinja"), Path("preprocessor_config.json")} < copied
    assert {path.parts[0] for path in copied if len(path.parts) > 1} == set(DECODER_PARTS)
    assert all(filecmp.cmp(source / name, tmp_path / name, shallow=False) for name in copied)
    copy_untrained_parts(source, tmp_path)  # once more over what is there


def test_a_folder_of_something_else_is_not_copied(checkpoint, tmp_path):
    (checkpoint / "runs").mkdir()
    (checkpoint / "runs" / "log.txt").write_text("")
    (checkpoint / ".hidden").write_text("")
    target = tmp_path / "target"
    target.mkdir()
    copy_untrained_parts(checkpoint, target)
    assert not (target / "runs").exists()
    assert not (target / ".hidden").exists()


def weights_of_decoders(folder):
    return {path.relative_to(folder): path for path in folder.rglob("*/*.safetensors")}


def test_a_copy_that_is_replaced_gives_what_is_still_the_sources(checkpoint, tmp_path):
    """Nothing is copied again but what somebody has changed there, and the source is in no other folder's hands."""
    first, second = tmp_path / "first", tmp_path / "second"
    for target, before in ((first, None), (second, first)):
        target.mkdir()
        if before is not None:
            changed = sorted(weights_of_decoders(first).values())[0]
            changed.write_bytes(b"somebody's")
        copy_untrained_parts(checkpoint, target, before)
    for name, path in weights_of_decoders(checkpoint).items():
        assert filecmp.cmp(path, second / name, shallow=False)
        assert path.stat().st_nlink == 1
        assert (second / name).samefile(first / name) == (first / name != changed)
    shutil.rmtree(first)
    assert all(path.stat().st_nlink == 1 for path in weights_of_decoders(second).values())


@pytest.mark.parametrize("refusal", ["refused", "cut", "missing"])
def test_copies_where_the_kernel_copies_nothing(checkpoint, tmp_path, monkeypatch, refusal):
    def refused(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    if refusal == "missing":
        monkeypatch.delattr(os, "copy_file_range")
    else:
        whole = os.copy_file_range
        once = iter([100])
        cut = lambda source, target, count: whole(source, target, next(once, 0))  # noqa: E731
        monkeypatch.setattr(os, "copy_file_range", refused if refusal == "refused" else cut)
    copy_untrained_parts(checkpoint, tmp_path)
    for name, path in weights_of_decoders(checkpoint).items():
        assert filecmp.cmp(path, tmp_path / name, shallow=False)


# What is refused


@pytest.mark.parametrize("part", ["config.json", "tokenizer_config.json", "preprocessor_config.json", *DECODER_PARTS])
def test_missing_parts(checkpoint, part):
    require_parts(checkpoint, decoder=True)
    path = checkpoint / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=rf"has no {part}"):
        require_parts(checkpoint, decoder=True)
    if part in DECODER_PARTS:
        require_parts(checkpoint, decoder=False)


def test_missing_weights(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"neither model\.safetensors nor"):
        require_parts(checkpoint, decoder=False)
    with pytest.raises(UserError, match=r"neither model\.safetensors nor"):
        load(checkpoint)


def change_tensors(checkpoint, change):
    tensors = load_file(checkpoint / "model.safetensors")
    change(tensors)
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})


def test_missing_tensor(checkpoint):
    change_tensors(checkpoint, lambda tensors: tensors.pop("visual_decoder.1.mlp.up_proj.weight"))
    with pytest.raises(UserError, match=r"checkpoint: tensor visual_decoder\.1\.mlp\.up_proj\.weight is missing"):
        load(checkpoint)


def test_missing_quantizer_buffer(checkpoint):
    change_tensors(checkpoint, lambda tensors: tensors.pop("model.visual.bsq.basis"))
    with pytest.raises(UserError, match=r"model\.visual\.bsq\.basis is missing"):
        load(checkpoint)


def test_left_over_tensors(checkpoint):
    edit(checkpoint / "config.json", visual_transformer_decoder_depth=1)
    with pytest.raises(UserError, match=r"tensor visual_decoder\.1\.\S+ belongs to no module, and \d+ more"):
        load(checkpoint)


def test_mismatched_tensor(checkpoint):
    def widen(tensors):
        tensors["output_layer_vistok.1.weight"] = torch.zeros(260, 64, dtype=torch.bfloat16)

    change_tensors(checkpoint, widen)
    with pytest.raises(UserError, match=r"output_layer_vistok\.1\.weight has shape \(260, 64\).*\(256, 64\)"):
        load(checkpoint)


def test_mismatched_tower(checkpoint):
    edit(checkpoint / "bsq_encoder" / "config.json", bsq_hidden_dim=32)
    with pytest.raises(UserError, match=r"tensor bsq_\S+ has shape \S+.*; the config makes it"):
        UniARVisionModel.from_pretrained(checkpoint / "bsq_encoder")


def test_another_head_than_the_configs(checkpoint):
    edit(checkpoint / "config.json", vistok_pred_layernorm=False)
    with pytest.raises(UserError, match=r"output_layer_vistok\S* is missing"):
        load(checkpoint)


def test_another_models_config(checkpoint):
    with pytest.raises(UserError, match="says model_type 'uniar_vision'; it must be 'uniar'"):
        load(checkpoint / "bsq_encoder")
    with pytest.raises(UserError, match="says model_type 'uniar'; it must be 'uniar_vision'"):
        UniARVisionModel.from_pretrained(checkpoint)
    edit(checkpoint / "config.json", model_type="qwen3_vl")
    with pytest.raises(UserError, match="'qwen3_vl'"):
        load(checkpoint)


@pytest.mark.parametrize("content", [b"{", b"[]", b"null", b"\xff\xfe\x00"])
def test_a_config_that_cannot_be_read(checkpoint, content):
    (checkpoint / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json' is not (a JSON object|whole, valid JSON|text in UTF-8)"):
        load(checkpoint)


def test_no_config(checkpoint):
    (checkpoint / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json"):
        load(checkpoint)


def test_damaged_weights(checkpoint):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"weights in \S+model\.safetensors cannot be read"):
        load(checkpoint)


def test_a_missing_shard(golden, tmp_path):
    golden("bsq8").model().save_pretrained(tmp_path, max_shard_size="200KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(UserError, match=shard.name):
        load(tmp_path)


def test_pickled_weights_are_not_read(checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    torch.save(tensors, checkpoint / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"neither model\.safetensors nor"):
        load(checkpoint)


def test_neither_folder_nor_hub_id(tmp_path):
    assert resolve_checkpoint(tmp_path) == tmp_path
    for path in (tmp_path / "nothing", "nothing/here/at/all"):
        with pytest.raises(UserError, match="nothing"):
            resolve_checkpoint(path)
        with pytest.raises(UserError, match="nothing"):
            load(path)
