"""Losses, KL terms and entropies of the reference implementation, reproduced."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rl.algorithm import bernoulli
from rl.algorithm.losses import LossInputs, LossSettings, policy_loss

GOLDEN = Path(__file__).parents[1] / "golden" / "bsq8"


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "grpo.safetensors"), json.loads((GOLDEN / "manifest.json").read_text())["params"]["grpo"]


def gap_of(logp: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """A bit's log-probability and the bit itself give its gap back: ±(log p - log(1 - p))."""
    logp = logp.double().reshape(bits.shape)
    return (2.0 * bits - 1) * (logp - torch.log(-torch.expm1(logp)))


def golden_inputs(tensors: dict, old: bool = True) -> LossInputs:
    """Their old and reference log-probabilities are numbers near those of the policy, above 0 too, which no gap has."""
    bits = tensors["codes"]
    inputs = LossInputs(tensors["advantages"], bits, gap_of(tensors["logps_T1.0"], bits))
    if old:
        inputs.old_logp = tensors["old_logps"].double().reshape(bits.shape)
    ref_logp = tensors["ref_logps"].double().reshape(bits.shape)
    inputs.kl_to_reference = lambda kind: bernoulli.kl_estimate(inputs.logp, ref_logp, kind)
    return inputs


@pytest.mark.parametrize(
    ("name", "settings", "factor"),
    [
        ("grpo_bsqnormFalse", {"loss": "grpo"}, 1),
        # The mean over all bits of the batch: dapo here, whose clip range is made symmetric as theirs was.
        ("bnpo_bsqnormFalse", {"loss": "dapo", "epsilon_high": 0.2}, 1),
        # Their constant was 256 where a sample has 1024 bits; ours is 1024.
        ("dr_grpo_bsqnormFalse", {"loss": "dr_grpo"}, 1024 / 256),
        # They divided the sum over bits by the visual tokens of the batch, so it is 128 bits per token too large.
        ("dapo_bsqnormFalse", {"loss": "dapo", "epsilon_high": 0.2}, 128),
    ],
)
def test_golden_losses(golden, name, settings, factor):
    """factor: `algorithm.loss_scale`."""
    tensors, params = golden
    expected = params["losses"][name]
    settings = {"level": "bit", "epsilon": params["epsilon"], "beta": params["beta"], "kl": "k3"} | settings
    found, metrics = policy_loss(golden_inputs(tensors), LossSettings(**settings))
    assert factor * found.item() == pytest.approx(expected["loss"], abs=1e-6, rel=2e-6 if expected["loss"] > 1 else 0)
    assert metrics["kl"].item() == pytest.approx(expected["metrics"]["kl"], abs=1e-6)
    for ours, theirs in (("low_mean", "low_mean"), ("high_mean", "high_mean"), ("region_mean", "mean")):
        assert metrics[f"clip_ratio/{ours}"].item() == pytest.approx(expected["metrics"][f"clip_ratio/{theirs}"])


def test_golden_loss_of_one_update_a_rollout(golden):
    tensors, params = golden
    found, metrics = policy_loss(golden_inputs(tensors, old=False), LossSettings("grpo", beta=params["beta"], kl="k3"))
    assert found.item() == pytest.approx(params["losses"]["grpo_bsqnormFalse_no_old"]["loss"], abs=1e-6)
    assert metrics["ratio/max"] == 1
    assert metrics["approx_kl"] == metrics["tv/max"] == metrics["clip_ratio/region_mean"] == 0


@pytest.mark.parametrize("temperature", ["1.0", "0.8"])
def test_golden_entropy(golden, temperature):
    tensors, params = golden
    bits = tensors["codes"]
    gap = gap_of(tensors[f"logps_T{temperature}"], bits)
    logp = tensors[f"logps_T{temperature}"].double().reshape(bits.shape)
    assert torch.allclose(bernoulli.log_prob(bits, gap), logp, atol=1e-12)
    means = bernoulli.entropy(gap).flatten(1).mean(1)
    assert torch.allclose(means, tensors[f"entropies_T{temperature}_mean"].double(), atol=1e-6)
    if temperature == "1.0":
        _, metrics = policy_loss(LossInputs(tensors["advantages"], bits, gap.float()), LossSettings("grpo"))
        expected = params["losses"]["grpo_bsqnormFalse"]["metrics"]["entropy"]
        assert metrics["entropy"].item() == pytest.approx(expected, abs=1e-6)
