"""Gradients beside Adam's epsilon: what is logged, when it warns, and that recipes of the released size leave room."""

import logging
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from support.training_runs import ROOT, changed, logged, run, small_recipe, weights

from rl.config.recipe import load_recipe
from rl.trainer.gradient_size import GradientSize

RELEASED = sorted(path.stem for path in (ROOT / "configs").glob("uniar_sft*.yaml"))


def size(optimizer=torch.optim.AdamW, **settings):
    """adam_epsilon is what TRL's arguments say, which an optimizer of DeepSpeed's file does not take."""
    defaults = {"max_grad_norm": 1.0, "adam_epsilon": 1e-8, "optim": "adamw_torch", "should_log": True}
    trained = [torch.nn.Parameter(torch.zeros(20, 10)), torch.nn.Parameter(torch.zeros(200))]
    return GradientSize(trained, SimpleNamespace(**defaults | settings), optimizer(trained))


def test_the_root_mean_square_of_what_the_optimizer_is_given():
    assert size().metrics(0.4) == {"optimizer/grad_rms": pytest.approx(0.02)}
    assert size().metrics(50.0) == {"optimizer/grad_rms": pytest.approx(0.05)}
    assert size(max_grad_norm=0.0).metrics(50.0) == {"optimizer/grad_rms": pytest.approx(2.5)}


def test_sharded_weights_count_whole():
    """Under ZeRO-3 a process holds a part of each."""
    shard = torch.nn.Parameter(torch.zeros(0))
    shard.ds_shape = torch.Size([40, 10])
    settings = SimpleNamespace(max_grad_norm=1.0, should_log=True)
    measured = GradientSize([shard], settings, torch.optim.AdamW([shard]))
    assert measured.metrics(0.4) == {"optimizer/grad_rms": pytest.approx(0.02)}


@pytest.mark.parametrize(
    ("norm", "settings", "warnings"),
    [
        (1.9e-6, {}, 1),
        (2.1e-6, {}, 0),
        (0.0, {}, 0),  # nothing to learn: watch.no_variance_steps has an eye on that
        (math.nan, {}, 0),
        (1.9e-6, {"optimizer": partial(torch.optim.AdamW, eps=1e-15)}, 0),
        (2.1e-6, {"optimizer": partial(torch.optim.AdamW, eps=1e-7)}, 1),
        (1.9e-6, {"optimizer": partial(torch.optim.AdamW, eps=1e-15), "adam_epsilon": 1e-6}, 0),
        (1.9e-6, {"optimizer": torch.optim.SGD}, 0),
        (1.9e-40, {"optimizer": torch.optim.Adafactor}, 0),
        (1.9e-6, {"should_log": False}, 0),
    ],
)
def test_too_small_a_gradient_is_warned_of_once(caplog, norm, settings, warnings):
    measured = size(**settings)
    with caplog.at_level(logging.WARNING):
        measured.metrics(norm)
        measured.metrics(norm)
    assert caplog.text.count("less than 10 times the optimizer's epsilon") == warnings


def test_a_norm_that_is_not_known_has_no_size(caplog):
    assert size().metrics(-1.0) == {}
    assert not caplog.text


def test_a_loss_that_is_larger_trains_the_same_weights(nano_checkpoint, tmp_path):
    """With the epsilon of the released size's recipes, on gradients as small as theirs are; with Adam's own it would
    not."""
    (epsilon,) = {load_recipe(ROOT / "configs" / f"{name}.yaml").trainer["adam_epsilon"] for name in RELEASED}
    found, sizes = {}, {}
    for kind, scale, own in [("small", 2**-10, epsilon), ("large", 1, epsilon), ("Adam's", 2**-10, 1e-8)]:
        trainer = {"adam_epsilon": own, "max_grad_norm": 1e3, "learning_rate": 1e-4}
        settings = changed(
            small_recipe(nano_checkpoint, tmp_path), algorithm={"loss_scale": scale}, output_dir=str(tmp_path / kind)
        )
        folder = run(settings, trainer={**settings["trainer"], **trainer})
        found[kind] = weights(folder.final)
        sizes[kind] = logged(folder, "optimizer/grad_rms")
        assert len(sizes[kind]) == 3
    assert sizes["large"] == pytest.approx([2**10 * size for size in sizes["small"]], rel=1e-3)
    assert all(1e-7 < size < 2e-6 for size in sizes["small"])

    def apart(one, other):
        return max((found[one][name] - found[other][name]).abs().max().item() for name in found[one])

    assert apart("small", "large") < 1e-5
    assert apart("Adam's", "large") > 1e-4
