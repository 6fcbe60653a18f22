"""docs/migrating.md names settings, commands, options and headings that exist."""

import argparse
import json
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from rewards.contract.spec import RewardSpec
from rl.cli import COMMANDS, main
from rl.config.recipe import recipe_from_mapping
from rl.config.trainer_arguments import TAKEN
from uniar.commands import arguments

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "migrating.md").read_text()
SECTIONS = {"model", "data", "rollout", "decode", "evaluate", "algorithm", "trainer", "rewards"}


def named_settings() -> set[str]:
    words = re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)[^`]*`", PAGE)
    return {word for word in words if word.split(".")[0] in SECTIONS}


def test_settings_exist():
    documented = set(re.findall(r"^\| `([a-z_.]+)` \|", (ROOT / "docs" / "config.md").read_text(), flags=re.MULTILINE))
    assert len(named_settings()) > 30
    for setting in named_settings():
        section, _, name = setting.partition(".")
        if section == "trainer":
            assert name in TAKEN, setting
        else:
            assert setting in documented, setting


def test_rewards_of_the_example_take_these_parameters():
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    recipe = recipe_from_mapping(
        {"model": {"preset": "nano"}, "data": {"prompts": "p.jsonl"}, **yaml.safe_load(example)}
    )
    specs = [RewardSpec.from_mapping(entry) for entry in recipe.rewards]
    assert [spec.name for spec in specs] == ["hpsv2", "geneval", "ocr", "vlm_judge"]
    assert [spec.build().name for spec in specs] == [spec.name for spec in specs]


@pytest.mark.parametrize("name", ["chat", "generate", "edit", "evaluate", "train"])
def test_options_of_commands_exist(name, capsys):
    assert name in COMMANDS
    with pytest.raises(SystemExit):
        main([name, "--help"])
    offered = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    for line in re.findall(rf"`uniar-rl {name}([^`]*)`", PAGE):
        assert set(re.findall(r"--[a-z-]+", line)) <= offered, line


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        path, _, heading = target.partition("#")
        if path.startswith("https://"):
            continue
        file = ROOT / "docs" / path if path else ROOT / "docs" / "migrating.md"
        assert file.resolve().exists(), target
        if heading:
            found = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in found}
            assert heading in slugs, target


# Each environment variable and flag of UniAR's scripts that a user may have set, script by script.
THEIRS = {
    "run_train_node.sh": """SHARED_DIR MODEL_PATH REF_MODEL_PATH DATA_PATH MASTER_ADDR NNODES NODE_RANK NPROC_PER_NODE
        MASTER_PORT WAIT_SERVICES IMAGE_WIDTH IMAGE_HEIGHT TEMPERATURE LR PER_DEVICE_BS GRAD_ACC NUM_GENERATIONS
        MAX_STEPS SAVE_STEPS SAVE_TOTAL_LIMIT ROLLOUT_SAVE_DIR ROLLOUT_SAVE_FREQUENCY ROLLOUT_MAX_IMAGES
        REWARD_WEIGHTS REWARD_FUNCTION_NAMES DECODE_NUM_INFERENCE_STEPS DECODE_CFG_SCALE BETA LOSS_TYPE LOSS_USE_FLOAT
        BSQ_LOSS_NORMALIZE LOGITS_USE_TEMPERATURE OUTPUT_ROOT RUN_NAME RESUME_FROM_CHECKPOINT WANDB_PROJECT
        WANDB_MODE""",
    "train_grpo.py": """--model_revision --prompt_key --max_prompt_length --max_completion_length
        --generation_batch_size --run_name --output_dir --seed --data_seed --decoder_gpu_urls --num_iterations
        --epsilon --epsilon_high --delta --importance_sampling_level --scale_rewards --steps_per_generation
        --sync_ref_model --top_entropy_quantile""",
    "servers": """SD3_TRANSFORMER_PATH SD3_PATH IMAGE_TOKENIZER_PATH DECODE_NUM_GPUS DECODE_BASE_PORT HPSV2_CKPT
        CLIP_PATH GENEVAL_CONFIG_PATH GENEVAL_CKPT_PATH OCR_MODEL_DIR UNIFIED_REWARD_MODEL TENSOR_PARALLEL
        PIPELINE_PARALLEL GPU_MEMORY_UTILIZATION SERVER_NAME INFERENCE_SKIP_FINAL_LAYERNORM CONDA_ROOT CONDA_ENV""",
    "inference": """--max_new_tokens --ar_height --ar_width --upsampling_ratio --cfg --decoder_num_inference_steps
        --decoder_cfg_scale --data_path --output_path --samples_per_prompt --batch_size --image_root --image_key""",
    "evaluation": "run_geneval.sh run_oneig.sh run_longtext.sh run_imgedit.sh",
}


@pytest.mark.parametrize("script", THEIRS)
def test_each_of_their_settings_is_on_the_page(script):
    assert not [name for name in THEIRS[script].split() if not re.search(rf"(?<![\w-]){name}\b", PAGE)]


def test_numbers_on_the_page_are_ours():
    """The factor of the losses follows from the released sizes; defaults are those of the commands and of a recipe."""
    bits_of_a_token = 4 * 4 * 64  # levels · spatial · bsq_dim of UniAR-SFT
    assert f"| `dapo` | visual tokens | the bits of a visual token | {bits_of_a_token} |" in PAGE
    assert f"the bits of an image / 256 | {bits_of_a_token * (512 // 32) ** 2 // 256} |" in PAGE
    parser = argparse.ArgumentParser()
    arguments.generate(parser)
    options = parser.parse_args(["--model", "m", "--output", "o"])
    said = f"`uniar-rl generate` takes {options.temperature}, {options.cfg} and {options.upsampling_ratio}"
    assert said in " ".join(PAGE.split())
    parser = argparse.ArgumentParser()
    arguments.chat(parser)
    assert f"{parser.parse_args(['--model', 'm']).max_new_tokens} tokens unless asked" in PAGE


def test_their_evaluation_settings_are_accepted(nano_checkpoint, tmp_path, monkeypatch):
    """Each line of the table, with a prompt file as theirs, comes as far as drawing, in the size it says."""
    Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg")
    line = {"idx": 4, "prompt": "a red circle", "meta": {"tag": "color"}}
    commands = re.findall(r"\| `run_\w+\.sh` \| [^|]* \| `uniar-rl ([^`]*)`", PAGE)
    assert len(commands) == 4
    drawn = []
    monkeypatch.setattr("uniar.commands.drawing._draw_batches", lambda *given: drawn.append(given[1:3]) or [])
    for number, command in enumerate(commands):
        name, *words = command.split()
        words = [str(tmp_path) if word.startswith("eval/") else word for word in words]
        picture = {"meta": {**line["meta"], "input_image": "a.jpg"}} if name == "edit" else {}
        (tmp_path / "prompts.jsonl").write_text(json.dumps({**line, **picture}))
        places = ["--prompts", str(tmp_path / "prompts.jsonl"), "--output", str(tmp_path / str(number))]
        assert main([name, "--model", str(nano_checkpoint), "--layout", "uniar", *places, *words]) == 0
    sizes = [(batches[0][0].request.height, batches[0][0].request.width) for batches, _ in drawn]
    assert sizes == [(512, 512), (704, 1280), (704, 1280), (512, 512)]
    assert [settings.upsampling_ratio for _, settings in drawn] == [2, 1, 1, 2]
    assert [settings.cfg for _, settings in drawn] == [2.5, 2, 2, 2]
    assert [sum(map(len, batches)) for batches, _ in drawn] == [4, 4, 4, 1]
