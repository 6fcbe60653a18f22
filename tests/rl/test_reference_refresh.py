"""A reference that follows the policy: what it becomes, when, and after a resume."""

import pytest
import torch
from safetensors.torch import load_file
from support.training_runs import changed, deepspeed, launch, logged, run, small_recipe

from rl.checkpoint.weights import trained_weights
from rl.config.checks import refresh_risk
from rl.config.recipe import recipe_from_mapping
from rl.distributed.weight_slices import SlicedFiles
from uniar.errors import UserError


@pytest.fixture
def settings(nano_checkpoint, tmp_path) -> dict:
    return changed(small_recipe(nano_checkpoint, tmp_path), algorithm={"beta": 0.05})


@pytest.mark.parametrize("model", [{}, {"lora": {"r": 4}}], ids=["full", "lora"])
def test_after_a_refresh_the_policy_is_at_its_reference(settings, model):
    folder = run(settings, model=model, algorithm={"reference_refresh": {"every": 2}}, trainer={"max_steps": 4})
    first, second, third, fourth = logged(folder, "kl")
    assert first == third == 0
    assert second > 0 < fourth


def test_a_mix_is_a_mix_of_weights(settings, nano_checkpoint):
    algorithm = {"reference_refresh": {"every": 1, "mix": 0.25}}
    folder = run(settings, algorithm=algorithm, model={"reference_device": "cpu"}, trainer={"save_steps": 1})
    before = load_file(nano_checkpoint / "model.safetensors")
    reference = {name: before[name] for name in SlicedFiles(folder.path / "checkpoint-1" / "reference")}
    for step in (1, 2, 3):
        checkpoint = folder.path / f"checkpoint-{step}"
        policy, found = trained_weights(checkpoint, nano_checkpoint), SlicedFiles(checkpoint / "reference")
        reference = {name: torch.lerp(tensor, policy[name], 0.25) for name, tensor in reference.items()}
        assert all(torch.allclose(found[name], tensor, atol=1e-6) for name, tensor in reference.items())
    assert all(value > 0 for value in logged(folder, "kl")[1:])


@pytest.mark.parametrize("model", [{}, {"lora": {"r": 4}}], ids=["full", "lora"])
def test_resumed_reference_is_the_uninterrupted_one(settings, tmp_path, model):
    sections = {"model": model, "algorithm": {"reference_refresh": {"every": 2}}}
    trainer = {"max_steps": 4, "save_steps": 3}
    whole = run(settings, **sections, trainer=trainer | {"save_steps": 4}, output_dir=str(tmp_path / "whole"))
    run(settings, **sections, trainer=trainer | {"max_steps": 3}, output_dir=str(tmp_path / "parts"))
    parts = run(settings, resume=True, **sections, trainer=trainer, output_dir=str(tmp_path / "parts"))
    for key in ("kl", "loss", "grad_norm"):
        assert logged(parts, key) == logged(whole, key), key


def test_what_cannot_be_refreshed(settings):
    with pytest.raises(UserError, match=r"reference_refresh has no reference to refresh, as algorithm\.beta is 0"):
        recipe_from_mapping(changed(settings, algorithm={"beta": 0, "reference_refresh": {"every": 1}}))
    refresh = {"reference_refresh": {"every": 1, "mix": 0.5}}
    with pytest.raises(UserError, match=r"mix is 0\.5, and model\.lora needs 1: the product of mixed"):
        recipe_from_mapping(changed(settings, model={"lora": {}}, algorithm=refresh))


def test_a_mix_too_small_for_bfloat16_is_warned_of(settings):
    def risk(mix: float, dtype: str) -> str | None:
        refresh = {"reference_refresh": {"every": 1, "mix": mix}}
        return refresh_risk(recipe_from_mapping(changed(settings, model={"dtype": dtype}, algorithm=refresh)))

    assert "mix 0.1 with model.dtype bfloat16" in risk(0.1, "bfloat16")
    assert "mix 0.5 with model.dtype bfloat16" in risk(0.5, "bfloat16")
    assert risk(0.6, "bfloat16") is None
    assert risk(0.1, "float32") is None


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3"])
def test_two_processes_refresh_as_one_does(settings, tmp_path, engine, lora):
    refresh = {"every": 2, "mix": 0.5 if lora is None else 1.0}
    sections = {"model": {"lora": lora}, "algorithm": {"reference_refresh": refresh}}
    trainer = {"max_steps": 4, "save_steps": 3}
    one = run(settings, **sections, trainer=trainer, output_dir=str(tmp_path / "one"))
    trainer |= {"per_device_train_batch_size": 4} | ({} if engine == "ddp" else {"deepspeed": deepspeed(engine)})
    two, _ = launch(settings, 2, **sections, trainer=trainer, output_dir=str(tmp_path / "two"))
    assert logged(two, "kl") == pytest.approx(logged(one, "kl"), rel=1e-3, abs=1e-7)
    expected, found = (SlicedFiles(folder.path / "checkpoint-3" / "reference") for folder in (one, two))
    assert all(torch.allclose(found[name], expected[name], atol=1e-4) for name in expected)
    losses = logged(two, "loss")
    (two.path / "checkpoint-4" / "manifest.json").unlink()
    resumed, _ = launch(settings, 2, "--resume", **sections, trainer=trainer, output_dir=str(tmp_path / "two"))
    assert logged(resumed, "loss") == losses
