"""Checkpoint files that are whole JSON and wrong: one sentence that names the file, before a weight is read."""

import json
import shutil
from pathlib import Path

import httpx2
import pytest
from safetensors.torch import load_file, save_file
from support.command_line import chat, draw
from support.training_runs import small_recipe

from rl.cli import main
from uniar.checkpoint import resolve_checkpoint
from uniar.errors import UserError
from uniar.inspection import inspect_checkpoint
from uniar.modeling_decoder import UniARVisualDecoder
from uniar.modeling_uniar import UniARForConditionalGeneration


@pytest.fixture
def checkpoint(nano_checkpoint, tmp_path, monkeypatch) -> Path:
    """A copy to damage, of which no weight may be read."""

    def read(*_, **__):
        pytest.fail("weights were read")

    monkeypatch.setattr(UniARForConditionalGeneration, "from_pretrained", read)
    monkeypatch.setattr(UniARVisualDecoder, "from_pretrained", read)
    return Path(shutil.copytree(nano_checkpoint, tmp_path / "checkpoint"))


def changed(file: Path, path: str, value: object) -> None:
    content = json.loads(file.read_text())
    *sections, key = path.split(".")
    place = content
    for section in sections:
        place = place[section]
    place[key] = value
    file.write_text(json.dumps(content))


SD3, VAE = "sd3_transformer/config.json", "sd3_pipeline/vae/config.json"
T5, SCHEDULER = "sd3_pipeline/text_encoder_3/config.json", "sd3_pipeline/scheduler/scheduler_config.json"
WRONG_VALUES = [
    *(("config.json", "text_config.hidden_size", value) for value in ("64", -64, 0, 64.5, None, [64], 128)),
    ("config.json", "text_config.num_hidden_layers", -1),
    ("config.json", "text_config.num_attention_heads", 0),
    ("config.json", "text_config.hidden_act", "no_such_thing"),
    ("config.json", "vision_config", None),
    ("config.json", "vision_config.deepstack_visual_indexes", [0]),
    ("config.json", "vision_config.deepstack_visual_indexes", "0, 1"),
    ("config.json", "vision_config.bsq_dim", 65),
    ("config.json", "vision_config.patch_size", 14),
    ("config.json", "visual_transformer_decoder_depth", "one"),
    ("config.json", "image_token_id", 5),
    ("config.json", "model_type", "qwen3_vl"),
    ("bsq_encoder/config.json", "hidden_size", "wide"),
    ("bsq_encoder/config.json", "bsq_hidden_dim", 32),
    (SD3, "num_layers", "two"),
    (SD3, "num_attention_heads", -2),
    (SD3, "siglip_channels", 3),
    (SD3, "_class_name", "FluxTransformer2DModel"),
    (VAE, "block_out_channels", [16, 16]),
    (VAE, "down_block_types", ["NoSuchBlock"] * 4),
    (T5, "d_model", "32"),
    (T5, "num_layers", -1),
    ("sd3_pipeline/text_encoder_2/config.json", "num_attention_heads", "many"),
    (SCHEDULER, "shift", "far"),
    ("preprocessor_config.json", "patch_size", "16"),
    ("preprocessor_config.json", "patch_size", 14),
    ("preprocessor_config.json", "merge_size", 1),
    ("preprocessor_config.json", "image_mean", "grey"),
    ("preprocessor_config.json", "image_std", [0.5, 0.5]),
    ("preprocessor_config.json", "temporal_patch_size", None),
    ("preprocessor_config.json", "image_processor_type", "NoSuchProcessor"),
    ("tokenizer_config.json", "model_max_length", "long"),
]


@pytest.mark.parametrize(("file", "key", "value"), WRONG_VALUES)
def test_wrong_values(checkpoint, file, key, value):
    changed(checkpoint / file, key, value)
    with pytest.raises(UserError) as raised:
        inspect_checkpoint(checkpoint, decoder=True)
    said = str(raised.value)
    assert Path(file).parent.name in said
    assert "\n" not in said


FILES = ["config.json", "tokenizer.json", "preprocessor_config.json", "bsq_encoder/config.json", SD3, T5, SCHEDULER]


@pytest.mark.parametrize("content", ["{}", "[]", "{"])
@pytest.mark.parametrize("file", [*FILES, SD3, T5, "sd3_pipeline/tokenizer_3/tokenizer.json", SCHEDULER])
def test_wrong_files(checkpoint, file, content):
    (checkpoint / file).write_text(content)
    with pytest.raises(UserError, match=Path(file).parent.name or Path(file).name) as raised:
        inspect_checkpoint(checkpoint, decoder=True)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 700


def test_a_generation_config_that_is_cut(checkpoint):
    (checkpoint / "generation_config.json").write_text('{"temp')
    with pytest.raises(UserError, match=r"generation_config.json' is not whole, valid JSON"):
        inspect_checkpoint(checkpoint, decoder=False)


def test_a_folder_that_is_no_checkpoint_is_not_looked_through(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "rglob", lambda *_: pytest.fail("looked through"))
    with pytest.raises(UserError, match=r"has no config\.json"):
        inspect_checkpoint(tmp_path, decoder=True)


def test_what_is_good_is_looked_at_once(checkpoint, monkeypatch):
    inspect_checkpoint(checkpoint, decoder=True)
    monkeypatch.setattr("uniar.inspection.require_parts", lambda *_, **__: pytest.fail("looked at again"))
    inspect_checkpoint(checkpoint, decoder=True)
    changed(checkpoint / "config.json", "text_config.hidden_size", "64")
    with pytest.raises(pytest.fail.Exception):
        inspect_checkpoint(checkpoint, decoder=True)


def test_every_command_says_it_before_weights_are_read(checkpoint, tmp_path, capsys):
    (checkpoint / "tokenizer.json").write_text("{}")
    (tmp_path / "recipe.yaml").write_text(json.dumps(small_recipe(checkpoint, tmp_path)))
    for run in (
        lambda: draw(checkpoint, "--prompt", "a red circle", "--output", tmp_path / "a.png"),
        lambda: chat(checkpoint, "--prompt", "what?"),
        lambda: main(["train", str(tmp_path / "recipe.yaml"), "rewards=[compressibility]"]),
    ):
        assert run() == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"{checkpoint}/tokenizer.json does not load" in said


PLACES = {
    "a folder that is gone": "{here}/gone",
    "in a folder that is there": "runs/gone",
    "a file": "{here}/model.safetensors",
    "a word": "uniar",
    "a path": "a/b/c",
    "a URL": "https://huggingface.co/owner/name",
    "a place above": "../gone",
    "an id": "owner/gone",
    "nobody's home": "~nobody-of-this-name/model",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_mistyped_place(checkpoint, monkeypatch, place):
    (checkpoint / "runs").mkdir()
    monkeypatch.chdir(checkpoint)
    path = PLACES[place].format(here=checkpoint)
    asked = []

    def no_network(name):
        asked.append(name)
        raise httpx2.ConnectError("[Errno -2] Name or service not known")

    monkeypatch.setattr("uniar.checkpoint.snapshot_download", no_network)
    with pytest.raises(UserError) as raised:
        resolve_checkpoint(path)
    assert path.split("/")[-1] in str(raised.value)
    assert "service not known" not in str(raised.value)
    assert "Error" not in str(raised.value)
    assert asked == (["owner/gone"] if place == "an id" else [])


def test_home_is_expanded(checkpoint, monkeypatch):
    monkeypatch.setenv("HOME", str(checkpoint.parent))
    assert resolve_checkpoint("~/checkpoint") == checkpoint


def test_drawing_with_a_checkpoint_of_a_run_names_export(checkpoint, tmp_path, capsys):
    (checkpoint / "trainer_state.json").write_text("{}")
    shutil.rmtree(checkpoint / "sd3_pipeline")
    assert draw(checkpoint, "--prompt", "a red circle", "--output", tmp_path / "a.png") == 2
    assert f"`uniar-rl export {checkpoint} --output FOLDER` makes a checkpoint of it" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "sd3_pipeline/tokenizer_3/tokenizer.json"])
def test_a_pointer_of_git_lfs_is_no_file(checkpoint, file):
    (checkpoint / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 123456\n")
    with pytest.raises(UserError, match=rf"{file} is a pointer of Git LFS, not the file itself; fetch it with"):
        inspect_checkpoint(checkpoint, decoder=True)


def test_weights_that_are_whole_numbers_are_refused(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    stored = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    save_file(stored, checkpoint / "model.safetensors")
    inspect_checkpoint(checkpoint, decoder=False)  # of another precision they may be
    save_file(weights | {"lm_head.weight": weights["lm_head.weight"].char()}, checkpoint / "model.safetensors")
    with pytest.raises(UserError, match=r"tensor lm_head\.weight is stored as int8; its numbers would be others"):
        inspect_checkpoint(checkpoint, decoder=False)
