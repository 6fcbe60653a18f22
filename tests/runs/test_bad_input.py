"""Bad input through the command line: exit code 2 and one clear sentence naming what was found and what is valid."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from support.training_runs import changed, small_recipe
from transformers import AutoTokenizer

from rl.cli import main


@pytest.fixture
def checkpoint(nano_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that the test may damage."""
    return Path(shutil.copytree(nano_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def recipe(checkpoint: Path, tmp_path: Path) -> dict:
    recipe = small_recipe(checkpoint, tmp_path)
    recipe["rewards"] = [{"use": "compressibility"}]
    return changed(recipe, trainer={"max_steps": 1, "save_strategy": "no"})


def sentence(recipe: dict, tmp_path: Path, capsys: pytest.CaptureFixture, *overrides: str) -> str:
    """What the command line says of a recipe that cannot work."""
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    capsys.readouterr()
    assert main(["train", str(tmp_path / "recipe.yaml"), *overrides]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("uniar-rl train: ")]
    assert len(said) == 1
    return said[0]


@pytest.mark.parametrize(
    ("key", "size", "words"),
    [
        (
            "data.prompts",
            (64, 100),
            "sizes.jsonl, line 2: width 100 is not a multiple of 32 pixels (patch × merge);",
        ),
        (
            "evaluate.prompts",
            (3200, 32),
            "sizes.jsonl, line 2: 3200×32 at upsampling_ratio 1 would be 3200×32; this decoder's sides",
        ),
    ],
)
def test_a_prompt_whose_size_cannot_be_drawn(recipe, tmp_path, capsys, key, size, words):
    rows = [{"prompt": "a red square"}, *({"prompt": f"{n}", "height": size[0], "width": size[1]} for n in range(4))]
    (tmp_path / "sizes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert words in sentence(recipe, tmp_path, capsys, f"{key}={tmp_path / 'sizes.jsonl'}")


OVERRIDES = {
    "unknown key": ("rollout.temperatur=1", "unknown key 'rollout.temperatur'", "'temperature'"),
    "unknown section": ("rolout={}", "unknown key 'rolout'", "'rollout'"),
    "wrong type": ("rollout.height=tall", "rollout.height", "'tall'"),
    "owned elsewhere": ("trainer.beta=0.1", "trainer.beta", "algorithm.beta"),
    "unknown trainer key": ("trainer.learning_rat=1", "trainer.learning_rat", "'learning_rate'"),
    "height": ("rollout.height=100", "height 100", "multiple of 32", "96 and 128"),
    "group": ("rollout.samples_per_prompt=3", "samples_per_prompt 3 does not divide", "8"),
    "preset": ("model={preset: nan}", "'nan'", "'nano'"),
    "no checkpoint": ("model.path=nowhere/at/all", "nowhere/at/all", "checkpoint"),
    "too few prompts": ("trainer.per_device_train_batch_size=64", "has 4 prompts", "16"),
    "no prompt file": ("data.prompts=none.jsonl", "none.jsonl", ""),
    "unknown reward": ("rewards=[{use: colour}]", "'colour'", "'color'"),
    "reward parameter": ("rewards=[{use: compressibility, qualty: 3}]", "qualty", "'quality'"),
    "missing weights": ("rewards=[{use: clip_score, weights: /no/such.pt}]", "/no/such.pt", ""),
    "memory": ("rollout.memory_budget_gb=0.000001", "one sample's rollout needs", "rollout.memory_budget_gb"),
    "no DeepSpeed configuration": (
        "trainer.deepspeed=zero9.json",
        "zero9.json, which is not a file",
        "configs/deepspeed",
    ),
    "DeepSpeed without a launcher": ("trainer={deepspeed: {zero_optimization: {stage: 2}}}", "torchrun", "recipe.yaml"),
    "unknown reporter": ("trainer.report_to=tensorbord", "tensorbord", "tensorboard"),
    "save_steps": (
        "trainer={save_steps: 3, max_steps: 8, steps_per_generation: 4, per_device_train_batch_size: 8}",
        "save_steps",
        "4",
    ),
}


@pytest.mark.parametrize("case", OVERRIDES)
def test_settings(case, recipe, tmp_path, capsys):
    override, *words = OVERRIDES[case]
    said = sentence(recipe, tmp_path, capsys, override)
    assert all(word in said for word in words), said


def test_recipe_file_itself(tmp_path, capsys):
    assert main(["train", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err
    (tmp_path / "broken.yaml").write_text("model: {preset: nano\n")
    assert main(["train", str(tmp_path / "broken.yaml")]) == 2
    assert "broken.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "a"', ["prompts.jsonl", "2"]),
        ('{"promt": "a"}', ["prompts.jsonl", "2", "prompt"]),
        ('{"prompt": 3}', ["prompts.jsonl", "2", "3"]),
        ('{"prompt": "a", "image": "gone.png"}', ["prompts.jsonl", "2", "gone.png"]),
    ],
)
def test_prompt_lines(line, words, recipe, tmp_path, capsys):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a red square"}\n' + line + "\n")
    said = sentence(recipe, tmp_path, capsys)
    assert all(word in said for word in words), said


def test_empty_prompt_set(recipe, tmp_path, capsys):
    (tmp_path / "prompts.jsonl").write_text("\n")
    assert "empty" in sentence(recipe, tmp_path, capsys)


PROMPTS = {
    "token": ([{"prompt": "a cat"}, {"prompt": "a <|image_pad|>"}], "line 2: the prompt contains <|image_pad|>"),
    "token of the checkpoint": ([{"prompt": "a <|mine|>"}], "line 1: the prompt contains <|mine|>"),
    "no picture": ([{"prompt": "a", "image": ""}], "line 1: 'image' is empty"),
    "picture cut short": ([{"prompt": "a", "image": "cut.png"}], "cut.png' cannot be read: "),
    "thin picture": (
        [{"prompt": "a", "image": "thin.png"}],
        "thin.png' has 5 × 2000 pixels; one side may be 200 times",
    ),
    "class of GenEval": (
        [{"prompt": "a dgo", "include": [{"class": "dgo"}]}],
        "line 1: reward 'geneval': include[0] class is 'dgo'; known: one of COCO's 80 classes. Did you mean 'dog'?",
    ),
    "count of GenEval": (
        [{"prompt": "no dog", "metadata": {"include": [{"class": "dog", "count": 0}]}}],
        "line 1: reward 'geneval': include[0] count is 0; a whole number of at least 1 is needed.",
    ),
    "target of OCR": (
        [{"prompt": "a sign", "text": 5}],
        "line 1: reward 'ocr': metadata 'text' is 5; a string or a list",
    ),
    "colour": ([{"prompt": "a", "color": "redd"}], "line 1: reward 'color': 'redd' is not a colour"),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_what_no_prompt_may_be_is_found_before_any_weight_is_loaded(
    case, checkpoint, recipe, tmp_path, capsys, monkeypatch
):
    rows, words = PROMPTS[case]
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    Image.new("RGB", (5, 2000)).save(tmp_path / "thin.png")
    Image.effect_noise((64, 64), 99).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * (4 // len(rows))))
    recipe["rewards"] = [{"use": use, "weight": 1.0} for use in ("geneval", "ocr", "color")]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|mine|>"]})
    tokenizer.save_pretrained(checkpoint)
    monkeypatch.delattr("rl.train.load_decoder")  # the first weights that a run loads
    for key in ("data", "evaluate"):
        for name in ("data", "evaluate"):
            recipe[name]["prompts"] = str(tmp_path / ("prompts.jsonl" if key == name else "good.txt"))
        (tmp_path / "good.txt").write_text("a cat\na dog\na cow\na hat\n")
        said = sentence(recipe, tmp_path, capsys)
        assert words in said
        assert str(tmp_path / "prompts.jsonl") in said


def test_prompts_without_a_name(recipe, tmp_path, capsys):
    said = sentence(recipe, tmp_path, capsys, "data.prompts=''")
    assert "name a prompt file, a .yaml mix or datasets:NAME" in said


@pytest.mark.parametrize(
    "part",
    ["bsq_encoder", "sd3_transformer", "sd3_pipeline", "tokenizer_config.json", "config.json", "model.safetensors"],
)
def test_missing_checkpoint_part(part, checkpoint, recipe, tmp_path, capsys):
    path = checkpoint / part
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    assert part in sentence(recipe, tmp_path, capsys)


def test_missing_tokenizer(checkpoint, recipe, tmp_path, capsys):
    """transformers would make one of nothing, to which every prompt is empty."""
    (checkpoint / "tokenizer.json").unlink()
    assert main(["chat", "--model", str(checkpoint), "--prompt", "Who are you?", "--max-new-tokens", "1"]) == 0
    (checkpoint / "vocab.json").unlink()
    assert "neither tokenizer.json nor vocab.json" in sentence(recipe, tmp_path, capsys)
    assert main(["chat", "--model", str(checkpoint), "--prompt", "Who are you?"]) == 2
    assert "neither tokenizer.json nor vocab.json" in capsys.readouterr().err


def test_missing_chat_template(checkpoint, recipe, tmp_path, capsys):
    (checkpoint / "chat_template.jinja").unlink()
    assert "chat_template.jinja" in sentence(recipe, tmp_path, capsys)


def test_missing_vae(checkpoint, recipe, tmp_path, capsys):
    shutil.rmtree(checkpoint / "sd3_pipeline" / "vae")
    assert "vae" in sentence(recipe, tmp_path, capsys)


def damage(checkpoint: Path, change) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    change(weights)
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})


HEAD = "output_layer_vistok.0.weight"


def test_mismatched_tensor(checkpoint, recipe, tmp_path, capsys):
    damage(checkpoint, lambda weights: weights.update({HEAD: weights[HEAD][:-1].clone()}))
    said = sentence(recipe, tmp_path, capsys)
    assert HEAD in said
    assert "(63,)" in said
    assert "(64,)" in said


def test_missing_and_left_over_tensors(checkpoint, recipe, tmp_path, capsys):
    damage(checkpoint, lambda weights: weights.pop(HEAD))
    assert f"{HEAD} is missing" in sentence(recipe, tmp_path, capsys)
    damage(
        checkpoint,
        lambda weights: weights.update(
            {HEAD: weights["lm_head.weight"][0].clone(), "extra": weights["lm_head.weight"][0].clone()}
        ),
    )
    assert "extra belongs to no module" in sentence(recipe, tmp_path, capsys)


def test_config_of_another_model(checkpoint, recipe, tmp_path, capsys):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "model_type": "qwen3_vl"}))
    said = sentence(recipe, tmp_path, capsys)
    assert "'qwen3_vl'" in said
    assert "'uniar'" in said


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed here")
def test_flash_attention_not_installed(recipe, tmp_path, capsys):
    said = sentence(recipe, tmp_path, capsys, "model.attention=flash_attention_2")
    assert "uniar-rl[flash]" in said


PLUGINS = {
    "does not import": ("import nothing_of_this_name", "nothing_of_this_name"),
    "wrong count": ("def plugin(prompts, images, **_): return [1.0]", "1"),
    "a string": ("def plugin(prompts, images, **_): return ['good'] * len(prompts)", "'good'"),
    "infinite": ("def plugin(prompts, images, **_): return [float('inf')] * len(prompts)", "inf"),
    "raises": ("def plugin(prompts, images, **_): raise KeyError('lost')", "lost"),
    "no such name": ("def other(prompts, images, **_): return [1.0] * len(prompts)", "plugin"),
}


@pytest.mark.parametrize("case", PLUGINS)
def test_reward_plugin(case, recipe, tmp_path, capsys):
    code, word = PLUGINS[case]
    (tmp_path / "mine.py").write_text(code + "\n")
    said = sentence(recipe, tmp_path, capsys, f"rewards=[{{use: {tmp_path / 'mine.py'}:plugin}}]")
    assert word in said, said
    assert "plugin" in said


def test_a_run_that_never_began_leaves_its_folder_free(recipe, tmp_path, capsys):
    for _ in range(2):
        assert "memory budget" in sentence(recipe, tmp_path, capsys, "rollout.memory_budget_gb=0.000001")


def test_output_folder_of_another_run(recipe, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    assert "holds another run" in sentence(recipe, tmp_path, capsys)


def test_overrides_may_follow_options(recipe, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert main(["train", str(tmp_path / "recipe.yaml"), "--resume", "rollout.height=100"]) == 2
    assert "rollout.height: height 100 is not a multiple" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", str(tmp_path / "recipe.yaml"), "--resum", "--nonsense"])


def test_an_export_does_not_replace_a_training_checkpoint(nano_checkpoint, tmp_path, capsys):
    checkpoint = Path(shutil.copytree(nano_checkpoint, tmp_path / "checkpoint-1"))
    (checkpoint / "trainer_state.json").write_text("{}")
    command = ["export", str(checkpoint), "--source", str(nano_checkpoint), "--output", str(checkpoint)]
    assert main(command) == 2
    assert "checkpoint-1, which it reads; choose another folder" in capsys.readouterr().err
    assert (checkpoint / "trainer_state.json").exists()


def test_export_and_evaluate(recipe, tmp_path, capsys):
    assert main(["export", str(tmp_path / "none"), "--output", str(tmp_path / "out")]) == 2
    assert "none" in capsys.readouterr().err
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert main(["evaluate", str(tmp_path / "recipe.yaml")]) == 2
    assert "evaluate.prompts" in capsys.readouterr().err


def test_damaged_weights(checkpoint, recipe, tmp_path, capsys):
    data = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert "model.safetensors cannot be read" in sentence(recipe, tmp_path, capsys)
