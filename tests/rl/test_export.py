"""What is exported loads with the model card's snippets and holds the trained weights."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub.errors import HFValidationError
from peft import PeftModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.training_runs import nudge
from support.warm_process import run_warm

from inference.visual_inputs import prepare_visual_inputs
from rl.checkpoint.adapters import merge_checkpoint
from rl.checkpoint.folders import seal
from rl.checkpoint.tensor_files import TensorFiles, parse_size
from rl.cli import main
from rl.config.model import LoraSection
from rl.config.recipe import load_recipe, recipe_from_mapping
from rl.export.model_card import Origin, model_card
from rl.export.verify import verify
from rl.export.writing import export_checkpoint, export_model
from rl.policy.loading import trainable
from uniar.errors import UserError
from uniar.modeling_decoder import UniARVisualDecoder
from uniar.modeling_uniar import UniARForConditionalGeneration

GOLDEN = Path(__file__).parents[1] / "golden" / "bsq8" / "ckpt"


def shapes(folder: Path) -> dict[str, tuple]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                piece = tensors.get_slice(name)
                found[name] = (tuple(piece.get_shape()), piece.get_dtype())
    return found


def keys(mapping: dict, prefix: str = "") -> set[str]:
    own = {f"{prefix}{key}" for key in mapping}
    return own.union(*(keys(value, f"{prefix}{key}.") for key, value in mapping.items() if isinstance(value, dict)))


def text_logits(model, processor) -> torch.Tensor:
    ids = processor.tokenizer("a red circle", return_tensors="pt").input_ids
    with torch.no_grad():
        return model(input_ids=ids).logits


def drawn(model, processor) -> torch.Tensor:
    inputs = prepare_visual_inputs(["a red circle"], model, processor, ar_height=64, ar_width=64)
    return model.generate_visual(**inputs, temperature=0, cfg=2.0)


def test_exported_model_is_the_trained_one(nano_model, nano_processor, nano_checkpoint, tmp_path):
    policy = trainable(nano_model, None)
    before = drawn(policy, nano_processor)
    nudge(policy)
    trained, logits = drawn(policy, nano_processor), text_logits(policy, nano_processor)
    assert not torch.equal(before, trained)
    export_model(policy, nano_checkpoint, tmp_path / "out")
    loaded = UniARForConditionalGeneration.from_pretrained(tmp_path / "out", torch_dtype=torch.float32)
    assert torch.equal(text_logits(loaded, nano_processor), logits)
    assert torch.equal(drawn(loaded, nano_processor), trained)
    images = UniARVisualDecoder.from_pretrained(tmp_path / "out").decode(
        trained, ar_height=64, ar_width=64, num_inference_steps=2
    )
    assert images[0].size == (128, 128)
    assert not (tmp_path / "out.partial").exists()


def test_lora_is_merged_and_the_policy_left_as_it_was(nano_model, nano_processor, nano_checkpoint, tmp_path):
    policy = trainable(nano_model, LoraSection(r=4, alpha=8))
    nudge(policy)
    base = policy.get_base_model()
    trained, weights = drawn(base, nano_processor), [p.clone() for p in policy.parameters()]
    export_model(policy, nano_checkpoint, tmp_path / "out")
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(weights, policy.parameters(), strict=True))
    loaded = UniARForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert torch.equal(drawn(loaded, nano_processor), trained)
    assert shapes(tmp_path / "out") == shapes(nano_checkpoint)

    policy.save_pretrained(tmp_path / "checkpoint-1")
    export_checkpoint(tmp_path / "checkpoint-1", nano_checkpoint, tmp_path / "later")
    again = UniARForConditionalGeneration.from_pretrained(tmp_path / "later")
    assert torch.equal(drawn(again, nano_processor), trained)


def test_layout_is_the_source_checkpoints(tmp_path):
    model = UniARForConditionalGeneration.from_pretrained(GOLDEN, torch_dtype=torch.float32)
    export_model(model, GOLDEN, tmp_path / "out")
    assert shapes(tmp_path / "out") == shapes(GOLDEN)
    written, golden = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", GOLDEN))
    assert keys(golden) <= keys(written)
    assert keys(written) - keys(golden) <= {
        "text_config.rope_parameters",
        "text_config.rope_parameters.mrope_interleaved",
        "text_config.rope_parameters.mrope_section",
        "text_config.rope_parameters.rope_theta",
        "text_config.rope_parameters.rope_type",
        "text_config.pad_token_id",
        "text_config.dtype",
        "vision_config.dtype",
    }
    assert written["dtype"] == golden["dtype"] == "bfloat16"
    for file in GOLDEN.rglob("*"):
        name = file.relative_to(GOLDEN)
        if file.is_file() and str(name) not in ("config.json", "generation_config.json", "model.safetensors"):
            assert (tmp_path / "out" / name).read_bytes() == file.read_bytes(), name


def test_what_is_no_checkpoint_is_refused(nano_checkpoint, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither config"):
        export_checkpoint(tmp_path / "empty", nano_checkpoint, tmp_path / "out")
    incomplete = tmp_path / "incomplete"
    incomplete.mkdir()
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json", "model.safetensors"):
        (incomplete / name).write_bytes((nano_checkpoint / name).read_bytes())
    shutil.copytree(nano_checkpoint / "bsq_encoder", incomplete / "bsq_encoder")
    with pytest.raises(UserError, match="sd3_transformer"):
        export_checkpoint(tmp_path / "empty", incomplete, tmp_path / "out")


def test_a_folder_with_other_things_is_not_overwritten(nano_model, nano_checkpoint, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(UserError, match="not a checkpoint folder"):
        export_model(nano_model, nano_checkpoint, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


# The command ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(nano_model, nano_checkpoint, tmp_path) -> Path:
    """A run of two updates with a full checkpoint and a LoRA one, evaluated at its start and its end."""
    settings = {
        "model": {"path": str(nano_checkpoint), "dtype": "float32"},
        "data": {"prompts": "prompts.jsonl"},
        "rollout": {"height": 64, "width": 64},
        "evaluate": {"temperature": 0.5, "guidance_scale": 2},
        "rewards": ["color", "compressibility"],
        "output_dir": str(tmp_path / "run"),
    }
    run = tmp_path / "run"
    (run / "evaluations").mkdir(parents=True)
    (run / "config.yaml").write_text(recipe_from_mapping(settings).to_yaml())
    for step, (total, color) in {0: ([1.0, None], [0.5, None]), 2: ([1.25, 0.5], [0.75, 0.0])}.items():
        scores = {"total": total, "color": color, "compressibility": [0.5, 0.5], "details": {"why": []}}
        (run / "evaluations" / f"step-{step:06d}.json").write_text(json.dumps(scores))
    policy = trainable(nano_model, None)
    nudge(policy)
    policy.save_pretrained(run / "checkpoint-2")
    for rank in range(2):
        (run / "checkpoint-2" / f"rng_state_{rank}.pth").write_bytes(b"")
    adapted = trainable(UniARForConditionalGeneration.from_pretrained(nano_checkpoint), LoraSection(r=4, alpha=8))
    nudge(adapted)
    adapted.save_pretrained(run / "checkpoint-1")
    return run


def test_command_writes_shards_that_verify(run_folder, nano_checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["export", str(run_folder / "checkpoint-2"), "--output", str(out), "--max-shard-size", "300KB"]
    assert main([*command, "--verify"]) == 0
    assert "verified: logits differ by at most 0.0e+00" in capsys.readouterr().out
    files = sorted(out.glob("*.safetensors"))
    assert [file.name for file in files] == [f"model-{n:05d}-of-00006.safetensors" for n in range(1, 7)]
    assert all(file.stat().st_size < 310_000 for file in files)
    assert shapes(out) == shapes(nano_checkpoint)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == shapes(out).keys()
    assert all(name in TensorFiles(out).stored for name in index["weight_map"])
    assert (out / "config.json").read_bytes() == (nano_checkpoint / "config.json").read_bytes()


def test_verify_finds_another_model(run_folder, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["export", str(run_folder / "checkpoint-2"), "--output", str(out)]
    assert main(command) == 0
    weights = load_file(out / "model.safetensors")
    weights["output_layer_vistok.1.weight"][7] += 0.01
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="its visual logits differ by up to"):
        verify(out, run_folder / "checkpoint-2", load_recipe_path(run_folder), torch.float32)


def test_verify_runs_nothing_that_it_reads(run_folder, tmp_path):
    out = tmp_path / "it's \"mine\"')\nraise SystemExit(3)  #"
    assert main(["export", str(run_folder / "checkpoint-2"), "--output", str(out)]) == 0
    (out / "README.md").write_text("```python\nraise SystemExit(4)\n```\n")
    assert verify(out, run_folder / "checkpoint-2", load_recipe_path(run_folder), torch.float32) == 0


def test_asking_for_a_name_reads_no_weight(run_folder, nano_checkpoint, monkeypatch):
    plain, merged = TensorFiles(nano_checkpoint), merge_checkpoint(run_folder / "checkpoint-1", nano_checkpoint)
    name = next(iter(plain))
    for weights in (plain, merged):
        monkeypatch.setattr(type(weights), "__getitem__", lambda *_: pytest.fail("a weight was read"))
        assert name in weights
        assert "another" not in weights


def load_recipe_path(run_folder: Path) -> Path:
    return Path(load_recipe(run_folder / "config.yaml").model.path)


def test_model_card_tells_how_it_was_made_and_its_code_runs(run_folder, tmp_path):
    assert main(["export", str(run_folder / "checkpoint-2"), "--output", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "2 updates" in card
    assert "| total | 1.0000 | 0.8750 | +0.2500 ± nan |" in card  # the second sample has no score at the start
    assert "| color | 0.5000 | 0.3750 |" in card
    assert "details" not in card
    assert "`torchrun --nproc_per_node 2 -m rl.train recipe.yaml` on 2 processes" in card
    (recipe,) = re.findall(r"```yaml\n(.*?)```", card, flags=re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(recipe)
    assert load_recipe(tmp_path / "recipe.yaml").rollout.height == 64
    assert f"torch {torch.__version__}" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert str(tmp_path) not in card
    done = run_warm("-c", code.replace("num_inference_steps=28", "num_inference_steps=1"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "circle.png").size == (64, 64)


def test_model_card_tells_nothing_of_the_machine():
    settings = {
        "model": {"path": "/data/private/base"},
        "data": {"prompts": "~/private/prompts.jsonl"},
        "rewards": [
            {"use": "remote", "url": "http://jane:pa55@10.0.0.2:8000"},
            {"use": "/home/jane/my_rewards.py:brightness"},
        ],
        "output_dir": "/home/jane/runs/x",
    }
    recipe = recipe_from_mapping(settings)
    for base in (None, "/data/private/base"):
        card = model_card("x", Origin("/data/private/base", recipe, 2, 1), torch.float32, adapter_base=base)
        for word in ("private", "jane", "pa55", "10.0.0.2", "8000", "/data", "~"):
            assert word not in card
        for word in ("`base`", "path: base", "prompts: prompts.jsonl", "use: my_rewards.py:brightness", "url: <URL>"):
            assert word in card


def test_card_names_a_hub_model_as_its_base(tmp_path):
    card = model_card("me/mine", Origin("ShareLab-SII/UniAR-SFT", steps=7), torch.bfloat16)
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "ShareLab-SII/UniAR-SFT"
    assert "7 updates" in card
    assert "torch_dtype=torch.bfloat16" in card


def test_adapter_alone_is_in_pefts_format(run_folder, nano_checkpoint, nano_processor, tmp_path, capsys):
    merged, alone = tmp_path / "merged", tmp_path / "alone"
    command = ["export", str(run_folder / "checkpoint-1"), "--verify", "--output"]
    assert main([*command, str(merged)]) == 0
    assert main([*command, str(alone), "--adapter-only"]) == 0
    assert capsys.readouterr().out.count("verified: ") == 2
    assert sorted(file.name for file in alone.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert json.loads((alone / "adapter_config.json").read_text())["base_model_name_or_path"] == str(nano_checkpoint)
    base = UniARForConditionalGeneration.from_pretrained(nano_checkpoint)
    adapted = PeftModel.from_pretrained(base, alone).merge_and_unload()
    loaded = UniARForConditionalGeneration.from_pretrained(merged)
    assert torch.equal(text_logits(adapted, nano_processor), text_logits(loaded, nano_processor))
    assert "PeftModel.from_pretrained(model, adapter)" in (alone / "README.md").read_text()

    assert main(["export", str(run_folder / "checkpoint-2"), "--output", str(alone), "--adapter-only"]) == 2
    assert "holds no adapter" in capsys.readouterr().err


def test_push_to_hub(run_folder, tmp_path, monkeypatch, capsys):
    calls = []

    class Hub:
        def create_repo(self, repository, *, private, exist_ok):
            if repository.startswith("someone/"):
                raise HFValidationError("403: no right to write\nand more")
            calls.append(("create", repository, private, exist_ok))
            return f"https://hub/{repository}"

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            names = {str(file.relative_to(folder_path)) for file in Path(folder_path).rglob("*") if file.is_file()}
            calls.append(("upload", repo_id, {"README.md", "config.json", "sd3_transformer/config.json"} <= names))

    monkeypatch.setattr("rl.commands.export.HfApi", Hub)
    command = ["export", str(run_folder / "checkpoint-2"), "--output", str(tmp_path / "out")]
    assert main([*command, "--push-to-hub", "me/mine", "--private"]) == 0
    assert calls == [("create", "me/mine", True, True), ("upload", "me/mine", True)]
    assert "https://hub/me/mine" in capsys.readouterr().out
    assert "# me/mine" in (tmp_path / "out" / "README.md").read_text()
    assert main([*command, "--push-to-hub", "someone/else"]) == 2
    message = capsys.readouterr().err
    assert "403: no right to write (log in" in message
    assert "and more" not in message


def test_damaged_and_unfit_checkpoints_are_refused(run_folder, nano_checkpoint, tmp_path, capsys):
    checkpoint = run_folder / "checkpoint-2"
    command = ["export", str(checkpoint), "--output", str(tmp_path / "out")]
    seal(checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    assert main(command) == 2
    assert "is damaged: model.safetensors is not what was written" in capsys.readouterr().err
    (checkpoint / "manifest.json").unlink()
    weights["visual_decoder.0.mlp.up_proj.bias"] = weights.pop("visual_decoder.0.mlp.up_proj.weight")
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    assert main(command) == 2
    assert "tensor visual_decoder.0.mlp.up_proj.weight is in" in capsys.readouterr().err
    (checkpoint / "model.safetensors").write_bytes(b"no tensors")
    assert main(command) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("300 kb", 300_000), ("1.5M", 1_500_000), ("7", 7)])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["0GB", "five", "5GiB", "-1MB", ""])
def test_sizes_that_are_none(text):
    with pytest.raises(UserError, match="the size"):
        parse_size(text)


def test_what_an_export_reads_is_not_replaced_by_it(run_folder, nano_checkpoint, tmp_path, capsys):
    source = tmp_path / "source"
    shutil.copytree(nano_checkpoint, source)
    before = {path.name: path.stat().st_mtime_ns for path in source.iterdir()}
    command = ["export", str(run_folder / "checkpoint-2"), "--source", str(source), "--output"]
    for output in (source, tmp_path / "elsewhere" / ".." / "source"):
        assert main([*command, str(output)]) == 2
        assert f"would replace {source}, which it reads; choose another folder." in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in source.iterdir()} == before
