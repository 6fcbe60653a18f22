"""`auto` for a precision: bfloat16 where it has kernels; and what is said where it is asked for and has none."""

import pytest
import torch
from support.training_runs import ROOT

from rl.checkpoint.resumed_recipe import check_resumed
from rl.config.precision import precision_risk
from rl.config.recipe import load_recipe
from uniar import placement
from uniar.errors import UserError

QUICKSTART = ROOT / "configs" / "quickstart.yaml"


@pytest.fixture(params=[True, False], ids=["kernels", "none"])
def kernels(request, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: request.param)
    monkeypatch.setattr(placement.torch.cuda, "is_available", lambda: False)
    return request.param


def test_auto_is_settled_when_a_recipe_is_read(kernels):
    recipe = load_recipe(QUICKSTART)
    assert recipe.trainer["bf16"] is kernels
    assert recipe.decode.dtype == ("bfloat16" if kernels else "float32")
    assert precision_risk(recipe) is None
    assert load_recipe(QUICKSTART, ["decode.dtype=float32", "trainer.bf16=true"]).trainer["bf16"] is True


@pytest.mark.parametrize(
    ("overrides", "asks"),
    [
        (["trainer.bf16=true"], "trainer.bf16 asks for bfloat16"),
        (["decode.dtype=bfloat16", "trainer.bf16=true"], "trainer.bf16 and decode.dtype ask for bfloat16"),
        (["model.dtype=bfloat16", "decode.dtype=float32", "trainer.bf16=false"], "model.dtype asks for bfloat16"),
    ],
)
def test_bfloat16_without_kernels_is_said_to_be_slow(kernels, overrides, asks):
    risk = precision_risk(load_recipe(QUICKSTART, overrides))
    assert risk is None if kernels else asks in risk


def test_what_the_recipe_puts_on_the_cpu_is_settled_for_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    monkeypatch.setattr(placement.torch.cuda, "is_available", lambda: True)
    assert load_recipe(QUICKSTART).trainer["bf16"] is True
    recipe = load_recipe(QUICKSTART, ["decode.device=cpu"])
    assert (recipe.trainer["bf16"], recipe.decode.dtype) == (True, "float32")
    assert load_recipe(QUICKSTART, ["trainer.use_cpu=true"]).trainer["bf16"] is False


def test_a_resumed_run_goes_on_in_its_precision(monkeypatch, tmp_path):
    monkeypatch.setattr(placement.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    (tmp_path / "config.yaml").write_text(load_recipe(QUICKSTART).to_yaml())
    check_resumed(load_recipe(QUICKSTART), tmp_path)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(
        UserError, match=r"trainer.bf16 is False, and .* was trained with True, .*; set the key to that"
    ):
        check_resumed(load_recipe(QUICKSTART), tmp_path)
    check_resumed(load_recipe(QUICKSTART, ["trainer.bf16=true", "decode.dtype=bfloat16"]), tmp_path)
