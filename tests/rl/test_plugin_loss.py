"""`algorithm.loss: path/to/file.py:function`: the page's example trains, faults are one sentence, a run is resumed."""

import json
import re
from pathlib import Path

import pytest
import torch
from support.training_runs import changed, launch, logged, run, small_recipe, weights

from rl.algorithm.losses import LossInputs, LossSettings, loss_named, policy_loss
from rl.cli import main
from rl.config.recipe import load_loss, load_recipe, recipe_from_mapping
from rl.train import train
from uniar.errors import UserError
from uniar.reading.yaml_files import parse_yaml

PAGE = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text(encoding="utf-8")
SECTION = PAGE.split("### A loss of your own")[1].split("\n### ")[0]
[EXAMPLE] = re.findall(r"```python\n(.*?)```", SECTION, flags=re.DOTALL)
[QUOTED] = re.findall(r"```yaml\n(.*?)```", SECTION, flags=re.DOTALL)

SAME = """
import torch

def grpo_again(inputs, ratio, settings):
    clipped = ratio.clamp(1 - settings.epsilon, 1 + settings.epsilon)
    return -torch.min(ratio * inputs.advantages, clipped * inputs.advantages)
"""


@pytest.fixture
def settings(nano_checkpoint, tmp_path) -> dict:
    """Two updates per rollout, so that ratios are not 1."""
    return changed(
        small_recipe(nano_checkpoint, tmp_path),
        algorithm={"num_iterations": 2},
        trainer={"max_steps": 2, "save_strategy": "no"},
    )


def inputs() -> LossInputs:
    noise = torch.randn(3, 2, 3, 1, 4, 2, generator=torch.Generator().manual_seed(0))
    gap = noise[0].requires_grad_()
    return LossInputs(torch.tensor([1.0, -0.5]), noise[1] > 0, gap, gap.detach() + 0.3 * noise[2], mask=MASK)


MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])


def test_the_page_s_example_trains_as_quoted(settings, tmp_path, monkeypatch):
    assert EXAMPLE.count("\n") <= 16
    (tmp_path / "spo.py").write_text(EXAMPLE)
    monkeypatch.chdir(tmp_path)
    folder = run(settings, **parse_yaml(QUOTED, "docs/algorithms.md")[0])
    first, second = logged(folder, "policy_loss")
    assert abs(first) < 1e-6  # on policy the advantages of a group add up to 0
    assert second != first
    assert logged(folder, "ratio/max")[1] > 1
    assert not logged(folder, "clip_ratio/region_mean")
    loss, _ = policy_loss(inputs(), LossSettings(f"{tmp_path / 'spo.py'}:spo", epsilon=0.3))
    given = inputs()
    ratio = (given.logp - given.old_logp).exp()
    terms = -(ratio * given.advantages - given.advantages.abs() / 0.6 * (ratio - 1) ** 2)
    assert loss.item() == pytest.approx(terms[given.mask.bool()].mean().item(), rel=1e-5)


def test_the_same_formula_trains_to_the_same_weights(settings, tmp_path):
    (tmp_path / "same.py").write_text(SAME)
    folders = [
        run(settings, algorithm={"loss": loss, "num_iterations": 2, "epsilon": 0.1}, output_dir=str(tmp_path / name))
        for name, loss in (("ours", "grpo"), ("theirs", f"{tmp_path / 'same.py'}:grpo_again"))
    ]
    ours, theirs = (weights(folder.final) for folder in folders)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for key in ("policy_loss", "ratio/mean", "kl", "grad_norm"):
        assert logged(folders[0], key) == logged(folders[1], key)


def test_every_process_has_it(settings, tmp_path):
    (tmp_path / "spo.py").write_text(EXAMPLE)
    algorithm = {"loss": f"{tmp_path / 'spo.py'}:spo", "num_iterations": 2}
    alone = run(settings, algorithm=algorithm, output_dir=str(tmp_path / "alone"))
    trainer = {"per_device_train_batch_size": 4}
    together, _ = launch(settings, 2, algorithm=algorithm, trainer={**settings["trainer"], **trainer})
    for key in ("policy_loss", "kl", "grad_norm"):
        assert logged(together, key) == pytest.approx(logged(alone, key), rel=1e-4, abs=1e-7), key


def test_beside_the_recipe_and_in_a_run_that_is_resumed(settings, tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "recipes" / "same.py").write_text(SAME)
    path = tmp_path / "recipes" / "mine.yaml"
    algorithm = {"loss": "same.py:grpo_again", "epsilon": 0.1}
    trainer = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    path.write_text(json.dumps(changed(settings, algorithm={**algorithm, "num_iterations": 1}, trainer=trainer)))
    monkeypatch.chdir(tmp_path / "elsewhere")
    recipe = load_recipe(path)
    assert recipe.algorithm.loss == f"{tmp_path / 'recipes' / 'same.py'}:grpo_again"
    folder = train(recipe)
    # From the run's own copy of the recipe, in yet another folder.
    again = load_recipe(folder.config, ["trainer.max_steps=2"])
    assert again.algorithm.loss == recipe.algorithm.loss
    assert len(logged(train(again, resume=True), "policy_loss")) == 2


FAULTS = {
    "nothing": ("", "has no 'mine'"),
    "a number": ("mine = 3", "is int, a function is needed"),
    "two arguments": (
        "def mine(inputs, settings): ...",
        "cannot be called as function(inputs, ratio, settings): too many positional arguments",
    ),
    "a fourth": (
        "def mine(a, b, c, d): ...",
        "cannot be called as function(inputs, ratio, settings): missing a required",
    ),
    "an average": (
        "def mine(a, b, c): ...\nmine.aggregation = 'median'",
        "has the aggregation 'median', expected one of sample, constant, batch",
    ),
    "syntax": ("def mine(", "does not import: SyntaxError"),
}
RETURNED = {
    "None": "returned NoneType, a tensor of terms is needed",
    "ratio.sum()": "returned torch.float32 of shape (), expected torch.float32 of shape (2, 3, 1, 4, 2), as inputs."
    "logp",
    "ratio.double()": "returned torch.float64 of shape (2, 3, 1, 4, 2), expected torch.float32 of shape",
    "ratio.detach()": "returned terms without gradient to inputs.logp",
    "(0 * ratio).log()": "returned 40 terms that are NaN or infinite",  # of 48, 8 are padding
    "ratio / inputs.sign": "raised AttributeError: 'LossInputs' object has no attribute 'sign' (mine.py, line 2)",
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_loaded_is_refused_with_key_and_line(settings, tmp_path, name):
    text, message = FAULTS[name]
    (tmp_path / "mine.py").write_text(text)
    recipe = changed(settings, algorithm={"loss": f"{tmp_path / 'mine.py'}:mine"})
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe, indent=1))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_loss(load_recipe(tmp_path / "recipe.yaml"))
    line = 1 + next(i for i, text in enumerate((tmp_path / "recipe.yaml").read_text().splitlines()) if '"loss"' in text)
    assert str(caught.value).startswith(f"{tmp_path / 'recipe.yaml'}, line {line}: algorithm.loss")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused_before_anything_is_loaded(settings, tmp_path):
    recipe = changed(settings, algorithm={"loss": "gone.py:mine"}, model={"path": "/not/there"})
    looked = rf"recipe: algorithm.loss: plug-in gone.py does not exist \(looked for {Path.cwd()}/gone.py"
    with pytest.raises(UserError, match=looked):
        train(recipe_from_mapping(recipe))


@pytest.mark.parametrize("returned", RETURNED)
def test_what_it_returns_is_looked_at(tmp_path, returned):
    (tmp_path / "mine.py").write_text(f"def mine(inputs, ratio, settings):\n    return {returned}\n")
    with pytest.raises(UserError, match=re.escape(f"algorithm.loss {tmp_path}/mine.py:mine {RETURNED[returned]}")):
        policy_loss(inputs(), LossSettings(f"{tmp_path / 'mine.py'}:mine"))


def test_a_fault_in_a_run_names_the_recipe(settings, tmp_path):
    (tmp_path / "mine.py").write_text("def mine(inputs, ratio, settings):\n    return ratio.sum()\n")
    with pytest.raises(
        UserError, match=r"recipe: algorithm\.loss .*mine\.py:mine returned torch\.float32 of shape \(\)"
    ):
        run(settings, algorithm={"loss": f"{tmp_path / 'mine.py'}:mine"})


def test_a_plan_calls_it(settings, tmp_path, capsys):
    (tmp_path / "spo.py").write_text(EXAMPLE)
    (tmp_path / "looks.py").write_text("def mine(inputs, ratio, settings):\n    return ratio * ratio.max().item()\n")
    (tmp_path / "recipe.yaml").write_text(json.dumps(settings))
    command = ["plan", str(tmp_path / "recipe.yaml"), "--prompt-tokens", "20"]
    assert main([*command, "algorithm.loss=spo.py:spo"]) == 0
    assert main([*command, "algorithm.loss=gone.py:spo"]) == 2
    assert "algorithm.loss: plug-in gone.py does not exist (looked for" in capsys.readouterr().err
    assert main([*command, "algorithm.loss=looks.py:mine"]) == 2
    assert "looks.py:mine raised RuntimeError" in capsys.readouterr().err


def test_settings_of_all_losses_are_taken():
    plugin = loss_named("mine.py:mine")  # not loaded
    settings = plugin.checked(LossSettings(plugin.name, "visual_token", epsilon=1, epsilon_high=2, delta=0.5))
    assert settings.level == "visual_token"
    assert plugin.checked(LossSettings(plugin.name)).level == "bit"
