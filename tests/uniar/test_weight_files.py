"""The weights that are exported, summed up and loaded are those that transformers, diffusers and peft would load."""

import json
import re
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from rl.checkpoint.adapters import trained_adapter
from rl.checkpoint.tensor_files import TensorFiles, main_dtype
from rl.cli import main
from rl.export.writing import trained_weights
from uniar.checkpoint import copy_untrained_parts, require_parts
from uniar.commands.loading import find_checkpoint
from uniar.errors import UserError
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.weight_files import DIFFUSERS, has_weights, stored_tensors, weight_files

ROOT = Path(__file__).parents[2]
INDEX = "model.safetensors.index.json"


@pytest.fixture
def checkpoint(nano_checkpoint, tmp_path) -> Path:
    return Path(shutil.copytree(nano_checkpoint, tmp_path / "checkpoint"))


def write(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, file, {"format": "pt"})


def split(folder: Path, stem: str = "model") -> dict[str, torch.Tensor]:
    """Weights in one file → two shards with an index; returns the tensors."""
    single = folder / f"{stem}.safetensors"
    tensors = load_file(single)
    single.unlink()
    names, weight_map = sorted(tensors), {}
    for number, share in enumerate((names[::2], names[1::2]), start=1):
        shard = f"{stem}-{number:05d}-of-00002.safetensors"
        write(folder / shard, {name: tensors[name] for name in share})
        weight_map |= dict.fromkeys(share, shard)
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tensors


def other(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor + 1 for name, tensor in tensors.items()}


def same(found, expected) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def fingerprint(folder: Path) -> str:
    arguments = Namespace(model=str(folder), device="cpu", dtype="auto", attention="auto", quiet=True)
    return find_checkpoint(arguments, decoder=True).fingerprint()


@pytest.mark.parametrize(
    "stale", ["model-00003-of-00003", "consolidated", "model.fp16", "pytorch_model", "diffusion_pytorch_model", "a"]
)
def test_files_beside_the_index_are_not_weights(checkpoint, tmp_path, stale):
    tensors = split(checkpoint)
    before = fingerprint(checkpoint)
    write(checkpoint / f"{stale}.safetensors", {name: tensor.half() for name, tensor in other(tensors).items()})
    loaded = UniARForConditionalGeneration.from_pretrained(checkpoint).state_dict()
    assert same(loaded, tensors)
    assert same(trained_weights(checkpoint, checkpoint), tensors)
    assert main_dtype(checkpoint) == torch.float32
    assert fingerprint(checkpoint) == before
    copy_untrained_parts(checkpoint, tmp_path)
    assert not [file for file in tmp_path.iterdir() if "safetensors" in file.name]


def test_transformers_takes_the_single_file_before_an_index(checkpoint):
    tensors = other(split(checkpoint))
    write(checkpoint / "model.safetensors", tensors)
    assert same(UniARForConditionalGeneration.from_pretrained(checkpoint).state_dict(), tensors)
    assert same(TensorFiles(checkpoint), tensors)


def test_diffusers_takes_the_index_before_a_single_file(checkpoint):
    vae = checkpoint / "sd3_pipeline" / "vae"
    tensors = split(vae, DIFFUSERS)
    write(vae / f"{DIFFUSERS}.safetensors", other(tensors))
    loaded = AutoencoderKL.from_pretrained(vae, use_safetensors=True).state_dict()
    assert same(TensorFiles(vae, DIFFUSERS), loaded)
    assert not same(loaded, other(tensors))
    require_parts(checkpoint, decoder=True)


def test_an_adapter_is_one_file(tmp_path):
    adapter = {"base_model.model.layer.lora_A.weight": torch.ones(2, 3)}
    write(tmp_path / "adapter_model.safetensors", adapter)
    write(tmp_path / "adapter_model-old.safetensors", other(adapter))
    write(tmp_path / "model.safetensors", other(adapter))
    assert same(trained_adapter(tmp_path), adapter)


def edited_index(folder: Path, **changes) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= changes.pop("weight_map", {})
    (folder / INDEX).write_text(json.dumps(index | changes))


def without(folder: Path, name: str) -> None:
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"][name]
    (folder / INDEX).write_text(json.dumps(index))


HEAD = "lm_head.weight"
FIRST, SECOND = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
BROKEN = {
    "a shard that is gone": (lambda f: (f / SECOND).unlink(), f"{SECOND}, which is not in the folder"),
    "a file above": (lambda f: edited_index(f, weight_map={HEAD: f"../{FIRST}"}), "in the folder itself"),
    "an absolute path": (lambda f: edited_index(f, weight_map={HEAD: str(f / FIRST)}), "in the folder itself"),
    "no name": (lambda f: edited_index(f, weight_map={HEAD: ""}), "in the folder itself"),
    "a pickle": (lambda f: edited_index(f, weight_map={HEAD: "pytorch_model.bin"}), "in the folder itself"),
    "a number": (lambda f: edited_index(f, weight_map={HEAD: 1}), "no weight_map"),
    "a list": (lambda f: (f / INDEX).write_text("[]"), "is not a JSON object"),
    "nothing": (lambda f: (f / INDEX).write_text(""), "not whole, valid JSON"),
    "half of it": (lambda f: (f / INDEX).write_bytes((f / INDEX).read_bytes()[:90]), "not whole, valid JSON"),
    "no metadata": (lambda f: edited_index(f, metadata=None), "no object 'metadata'"),
    "another shard": (lambda f: edited_index(f, weight_map={"made.up": FIRST}), "made.up is not in it"),
    "a tensor twice": (
        lambda f: write(f / SECOND, load_file(f / SECOND) | {HEAD: load_file(f / FIRST)[HEAD]}),
        f"{HEAD} is in it as well",
    ),
    "a tensor left out": (lambda f: without(f, HEAD), f"{HEAD} is in it as well"),
    "a shard cut short": (lambda f: (f / FIRST).write_bytes((f / FIRST).read_bytes()[:-9]), f"{FIRST} cannot be read"),
    "a type nobody knows": (
        lambda f: write(f / FIRST, {n: t.to(torch.float8_e4m3fn) for n, t in load_file(f / FIRST).items()}),
        "F8_E4M3",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_index_that_does_not_say_what_is_there(checkpoint, case):
    split(checkpoint)
    assert HEAD in load_file(checkpoint / FIRST)
    damage, words = BROKEN[case]
    damage(checkpoint)
    for read in (TensorFiles, main_dtype, UniARForConditionalGeneration.from_pretrained):
        with pytest.raises(UserError, match=re.escape(words)):
            read(checkpoint)


def test_weights_that_a_config_names_otherwise(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "transformers_weights": "other.safetensors"}))
    with pytest.raises(UserError, match="transformers_weights"):
        weight_files(checkpoint)


def test_no_weights(tmp_path):
    assert not has_weights(tmp_path)
    (tmp_path / "consolidated.safetensors").write_bytes(b"")
    assert not has_weights(tmp_path)
    with pytest.raises(UserError, match=f"neither model.safetensors nor {INDEX}"):
        stored_tensors(tmp_path)


def test_what_is_not_a_whole_checkpoint(checkpoint):
    (checkpoint / "adapter_config.json").write_text("{}")  # with which transformers would load another model
    with pytest.raises(UserError, match="holds an adapter, not a whole model"):
        require_parts(checkpoint, decoder=True)
    with pytest.raises(UserError, match="holds an adapter, not a whole model"):
        UniARForConditionalGeneration.from_pretrained(checkpoint)
    (checkpoint / "trainer_state.json").write_text("{}")
    with pytest.raises(UserError, match=r"uniar-rl export \S+checkpoint --output FOLDER"):
        require_parts(checkpoint, decoder=True)


def test_an_export_holds_the_shards_of_the_index(checkpoint, nano_checkpoint, tmp_path):
    tensors = split(checkpoint)
    write(checkpoint / "model-00003-of-00003.safetensors", dict(list(other(tensors).items())[:37]))
    command = ["export", str(checkpoint), "--source", str(nano_checkpoint), "--output", str(tmp_path / "out")]
    assert main(command) == 0
    assert same(load_file(tmp_path / "out" / "model.safetensors"), tensors)


def test_nobody_takes_whatever_lies_in_a_folder():
    for file in [*(ROOT / "uniar").rglob("*.py"), *(ROOT / "rl").rglob("*.py")]:
        assert not re.search(r"glob\([^)]*safetensors", file.read_text()), file
