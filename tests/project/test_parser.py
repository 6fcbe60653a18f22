"""What is typed wrongly is named together with what is nearest to it."""

import pytest

from rl.cli import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("generat --prompt x", "no command is called 'generat'. Did you mean 'generate'?"),
        ("rewards lst", "Did you mean 'list'?"),
        (
            "train recipe.yaml --resum-now",
            "uniar-rl train: error: unrecognized arguments: --resum-now. Did you mean '--resume'?",
        ),
        ("evaluate recipe.yaml --ouput=x", "unrecognized arguments: --ouput=x. Did you mean '--output'?"),
        (
            "rewards score ocr --image a --batchsize 3",
            "unrecognized arguments: --batchsize. Did you mean '--batch-size'?",
        ),
        ("generate --model a --prompt b --output c --layout uniarr", "Did you mean 'uniar'?"),
        ("report a --zzz", "unrecognized arguments: --zzz."),
        (
            "train recipe.yaml --trainer.max_steps=1",
            "unrecognized arguments: --trainer.max_steps=1. Settings have no dashes: trainer.max_steps=1.",
        ),
        (
            "plan recipe.yaml --max_steps 1",
            "unrecognized arguments: --max_steps. Settings have no dashes: max_steps=….",
        ),
        ("generate --model a --output b --guidance_scale 2", "--guidance_scale. Did you mean '--cfg'?"),
        ("edit --model a --output b --num-inference-steps=2", "Did you mean '--steps'?"),
        ("export a --output b --guidance_scale 2", "unrecognized arguments: --guidance_scale."),
        ("train --config recipe.yaml", "unrecognized arguments: --config."),
        ("rewards score color --image a --long_side 3", "Settings have no dashes: long_side=…."),
        ("train", "the following arguments are required: recipe"),
        ("evaluate", "the following arguments are required: recipe"),
        ("rewards score", "the following arguments are required: name, --image"),
        ("export a --output b surplus", "unrecognized arguments: surplus"),
    ],
)
def test_hints(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(said) if "required" in said else said in last
    assert ("Did you mean" in last) == ("Did you mean" in said)


def test_overrides_may_stand_after_options(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {preset: nano}\n")
    assert main(["plan", str(recipe), "--gpus", "2", "rollout.nothing=1"]) == 2
    assert "unknown key 'rollout.nothing'" in capsys.readouterr().err
