"""What the README shows runs, on a small checkpoint and at a small size."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from support.warm_process import ROOT, run_warm

from rl.cli import main
from rl.config.recipe import load_recipe

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def shell_lines(start: str) -> list[str]:
    lines = [line.split(" # ")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line.startswith(start)]


def small(text: str, checkpoint: Path) -> str:
    return text.replace("PATH", str(checkpoint)).replace("512", "64").replace("=28", "=2")


def clone_at(folder: Path, monkeypatch) -> None:
    """Makes `folder` the current one, with what recipes name in it."""
    for name in ("configs", "assets"):
        (folder / name).symlink_to(ROOT / name)
    monkeypatch.chdir(folder)


def test_the_model_cards_snippet(tmp_path):
    (snippet,) = (block for block in blocks("python") if "from_pretrained" in block)
    program = small(snippet, ROOT / "assets" / "uniar-tiny").replace("a red kettle", "a photo of a red circle")
    program = program.replace("What is this?", "what shape is this?")
    program = program.replace("import torch\n", "import torch\ntorch.manual_seed(0)\n", 1)
    program += "image.save('drawn.png')\n"
    ended = run_warm("-c", program, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.strip() == "circle"
    assert Image.open(tmp_path / "drawn.png").size == (64, 64)


def test_the_commands_for_a_checkpoint(nano_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = [line for name in ("generate", "edit", "chat") for line in shell_lines(f"uniar-rl {name} ")]
    assert len(lines) == 3
    for line in lines:
        arguments = shlex.split(small(line, nano_checkpoint))[1:]
        if arguments[0] == "edit":
            arguments += ["--height", "64", "--width", "64"]
        assert main(arguments) == 0, line
    assert (tmp_path / "kettle.png").is_file()
    assert (tmp_path / "blue.png").is_file()
    assert capsys.readouterr().out.strip()


def test_a_reward_of_ones_own(tmp_path, monkeypatch, capsys):
    (plugin,) = (block for block in blocks("python") if "my_rewards.py" in block)
    (line,) = shell_lines("uniar-rl train configs/nano.yaml")
    (tmp_path / "my_rewards.py").write_text(plugin)
    clone_at(tmp_path, monkeypatch)
    short = ["trainer.max_steps=1", "trainer.save_strategy=no", "evaluate.limit=2"]
    assert main([*shlex.split(line)[1:], *short]) == 0
    assert "final" in capsys.readouterr().out


def test_the_commands_for_a_run(tmp_path, monkeypatch, capsys):
    """In the order shown, on a run of two updates that stopped after the first."""
    clone_at(tmp_path, monkeypatch)
    lines = next(block.splitlines() for block in blocks("bash") if "--resume" in block)
    short = ["rollout.samples_per_prompt=2", "trainer.per_device_train_batch_size=2", "trainer.save_steps=1"]
    short += ["understanding.limit=2", "evaluate.limit=2", "evaluate.at_start=false", "decode.num_inference_steps=1"]
    short += ["output_dir=runs/NAME"]
    assert main(["train", "configs/quickstart.yaml", *short, "trainer.max_steps=1"]) == 0
    assert len(lines) == 4
    for line in lines:
        line = (
            line.split(" # ")[0].replace("checkpoint-100", "checkpoint-2").replace("RECIPE", "configs/quickstart.yaml")
        )
        command = line.removeprefix("torchrun --nproc_per_node 8 -m rl.cli ").removeprefix("uniar-rl ")
        more = [*short, "trainer.max_steps=2"] if "export" not in command else []
        assert main([*shlex.split(command), *more]) == 0, line
    for made in ("runs/NAME/final", "scores/scores.json", "too/scores.json", "my-uniar/config.json"):
        assert (tmp_path / made).exists(), made


def test_the_launch_lines_name_recipes_that_load():
    lines = [line for line in shell_lines("torchrun") if "-m rl.train" in line]
    assert len(lines) == 2
    for line in lines:
        recipe, *overrides = line.split("-m rl.train ")[1].split()
        assert load_recipe(ROOT / recipe, overrides).rollout.height == 512


def test_files_it_points_to_are_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).is_file(), target


@pytest.mark.parametrize("script", ["launch/quickstart.sh", "launch/test.sh"])
def test_the_two_commands(script):
    assert f"bash {script}" in README
    assert (ROOT / script).is_file()
