"""`uniar-rl evaluate`: on one process and on several, with the config of a run, and what it refuses."""

import json
import math
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support.training_runs import changed, run, small_recipe
from support.warm_process import run_warm

from rl.checkpoint.folders import checkpoints
from rl.cli import main
from rl.config.recipe import load_recipe
from rl.records.rows import read_rows
from rl.run.folder import RunFolder

ROOT = Path(__file__).parents[2]
PLUGIN = """\
def mean_red(prompts, images):
    means = [image.resize((1, 1)).getpixel((0, 0))[0] / 255 for image in images]
    return [None if "circle" in prompt else mean for prompt, mean in zip(prompts, means)]
"""


@pytest.fixture
def recipe(nano_checkpoint: Path, tmp_path: Path) -> dict:
    lines = [{"prompt": f"a {colour} square", "task": "a"} for colour in ("red", "blue", "green", "yellow", "pink")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "model": {"path": str(nano_checkpoint), "dtype": "float32"},
        "data": {"prompts": str(tmp_path / "prompts.jsonl")},
        "rollout": {"height": 64, "width": 64, "samples_per_prompt": 4},
        "decode": {"num_inference_steps": 1, "batch_size": 4},
        "rewards": [{"use": "compressibility"}],
        "evaluate": {"prompts": str(tmp_path / "prompts.jsonl"), "samples_per_prompt": 4, "temperature": 1.0},
        "output_dir": str(tmp_path / "run"),
    }


def test_a_runs_config_scores_the_same_on_any_number_of_processes(recipe, tmp_path):
    """The plug-in stands beside the recipe, which is in another folder than the config and the current one."""
    beside = tmp_path / "recipes"
    beside.mkdir()
    (beside / "mine.py").write_text(PLUGIN)
    rewards = [{"use": "mine.py:mean_red"}, {"use": "compressibility", "weight": 0}]
    (beside / "mine.yaml").write_text(json.dumps({**recipe, "rewards": rewards}))
    folder = RunFolder.claim(load_recipe(beside / "mine.yaml"))

    command = ["evaluate", str(folder.config), "--output"]
    assert main([*command, str(tmp_path / "one")]) == 0
    done = run_warm("-m", "rl.cli", *command, tmp_path / "three", processes=3)
    assert done.returncode == 0, done.stderr[-3000:]
    one, three = (json.loads((tmp_path / name / "scores.json").read_text())["metrics"] for name in ("one", "three"))
    assert one.pop("eval_seconds") > 0
    assert three.pop("eval_seconds") > 0
    assert one == three
    assert 0 < one["eval_mean_red"] < 1
    assert done.stdout.count(f"reward: {one['eval_reward']:.4f}") == 1
    grids = [(tmp_path / name / "samples.png").read_bytes() for name in ("one", "three")]
    assert grids[0] == grids[1]
    rows, again = (read_rows(RunFolder(tmp_path / name).rows(0)) for name in ("one", "three"))
    assert rows == again
    assert len(set(zip(rows["id"].to_pylist(), rows["sample"].to_pylist(), strict=True))) == len(rows) == 20


def test_the_folder_of_a_run_is_refused_before_anything_is_loaded(recipe, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(json.dumps({**recipe, "model": {"path": str(tmp_path / "none")}}))
    folder = RunFolder.claim(load_recipe(tmp_path / "recipe.yaml"))
    before = sorted(folder.path.rglob("*"))
    assert main(["evaluate", str(tmp_path / "recipe.yaml"), "--output", str(folder.path)]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert f"--output {folder.path} is the folder of a run" in said[0]
    assert sorted(folder.path.rglob("*")) == before


def test_an_earlier_evaluation_of_the_step_is_replaced(recipe, tmp_path):
    """It may be of another model, with other rewards and questions."""
    output = tmp_path / "scores"
    (output / "evaluations").mkdir(parents=True)
    answers = {"exact_match": [1.0], "p_answer": [1.0], "p_token": [1.0], "answers": ["yes"]}
    earlier = {"total": [1.0], "aesthetic": [1.0], "understanding": answers}
    (output / "evaluations" / "step-000000.json").write_text(json.dumps(earlier))
    (output / "understanding.json").write_text(json.dumps(answers))
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    command = ["evaluate", str(tmp_path / "recipe.yaml"), "evaluate.samples_per_prompt=1", "evaluate.limit=2"]
    assert main([*command, "--output", str(output)]) == 0
    assert json.loads((output / "evaluations" / "step-000000.json").read_text()).keys() == {"total", "compressibility"}
    assert not (output / "understanding.json").exists()


def test_what_has_no_number_is_null(recipe, tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    (tmp_path / "circles.jsonl").write_text('{"prompt": "a red circle"}\n')
    recipe["rewards"] = [{"use": f"{tmp_path / 'mine.py'}:mean_red"}]
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    command = ["evaluate", str(tmp_path / "recipe.yaml"), f"evaluate.prompts={tmp_path / 'circles.jsonl'}"]
    assert main([*command, "evaluate.samples_per_prompt=1", "--output", str(tmp_path / "scores")]) == 0

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    scores = json.loads((tmp_path / "scores" / "scores.json").read_text(), parse_constant=refuse)
    assert scores["metrics"]["eval_reward"] is None
    assert scores["metrics"]["eval_excluded_samples"] == 1


def test_weights_that_are_not_finite_get_no_score(recipe, nano_checkpoint, tmp_path, capsys):
    damaged = Path(shutil.copytree(nano_checkpoint, tmp_path / "damaged"))
    weights = load_file(damaged / "model.safetensors")
    weights["output_layer_vistok.1.weight"][0] = math.nan
    save_file(weights, damaged / "model.safetensors")
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert main(["evaluate", str(tmp_path / "recipe.yaml"), "--model", str(damaged)]) == 2
    assert f"{damaged}: tensor output_layer_vistok.1.weight holds NaN or infinities." in capsys.readouterr().err


def test_a_device_that_is_not_there(recipe, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert main(["evaluate", str(tmp_path / "recipe.yaml"), "--device", "gpuu"]) == 2
    assert "--device gpuu is not here: there is " in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_rewards_that_no_held_out_prompt_is_for(command, recipe, tmp_path, capsys):
    """Without `eval_rewards` the training rewards score the held-out prompts, so their tasks must be there too."""
    (tmp_path / "held_out.jsonl").write_text('{"prompt": "a red circle", "task": "b"}\n')
    recipe["rewards"] = [{"use": "compressibility", "tasks": ["a"]}]
    recipe["trainer"] = {"max_steps": 1, "per_device_train_batch_size": 8}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert main([command, str(tmp_path / "recipe.yaml"), f"evaluate.prompts={tmp_path / 'held_out.jsonl'}"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "held_out.jsonl" in said[0]
    assert "eval_rewards" in said[0]
    assert "for the task 'a', which no prompt has; tasks of the prompts: b." in said[0]


@pytest.mark.parametrize("section", ["rewards", "eval_rewards"])
def test_a_reward_that_would_be_logged_as_the_total_is_refused(section, recipe, tmp_path, capsys):
    recipe[section] = [{"use": "compressibility", "name": "reward"}]
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert main(["evaluate", str(tmp_path / "recipe.yaml")]) == 2
    assert "is called 'reward', which they use themselves; give it another name" in capsys.readouterr().err


@pytest.mark.parametrize("lora", [None, {"r": 4, "alpha": 16}], ids=["full", "lora"])
def test_a_runs_checkpoint_and_an_adapter_score_as_the_exported_model(nano_checkpoint, tmp_path, lora, capsys):
    settings = small_recipe(nano_checkpoint, tmp_path)
    held_out = {"prompts": settings["data"]["prompts"], "guidance_scale": 1.0, "temperature": 1.0}
    trainer = {"max_steps": 1, "save_steps": 1, "learning_rate": 0.05}
    folder = run(changed(settings, evaluate=held_out, trainer=trainer, model={"lora": lora}))
    (checkpoint,) = checkpoints(folder.path)

    def rows(name: str, model: Path | None) -> list[dict]:
        command = ["evaluate", str(folder.config), "--output", str(tmp_path / name)]
        assert main([*command, *(["--model", str(model)] if model else [])]) == 0
        (file,) = (tmp_path / name / "evaluations").glob("step-*.parquet")
        assert file.name == ("step-000001.parquet" if model == checkpoint else "step-000000.parquet")
        return read_rows(file).drop_columns(["step"]).to_pylist()

    exported = rows("exported", folder.final)
    assert rows("checkpoint", checkpoint) == exported
    assert rows("start", None) != exported
    if lora is not None:
        assert main(["export", str(checkpoint), "--adapter-only", "--output", str(tmp_path / "adapter")]) == 0
        assert rows("alone", tmp_path / "adapter") == exported
        # An adapter alone has no averages; it is evaluated as it is.
        averaged = ["evaluate", str(folder.config), "model.ema={decay: 0.5}", "evaluate.ema=true"]
        assert main([*averaged, "--model", str(tmp_path / "adapter")]) == 0
    (checkpoint / "trainer_state.json").write_text("{")
    for named, said in ((checkpoint, "is damaged: trainer_state.json has 1 bytes"), (folder.path, "is a run's folder")):
        assert main(["evaluate", str(folder.config), "--model", str(named)]) == 2
        assert said in capsys.readouterr().err
