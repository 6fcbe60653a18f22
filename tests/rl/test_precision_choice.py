"""`auto` for a precision: bfloat16 where it has kernels; and what is said where it is asked for and has none."""

import pytest
import torch
from support.training_runs import ROOT

from rl.config.checks import precision_risk
from rl.config.recipe import load_recipe
from uniar import placement

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
