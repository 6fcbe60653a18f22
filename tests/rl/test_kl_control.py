"""The weight of the KL term, steered to a target."""

import math

import pytest
from support.training_runs import launch, logged, run, small_recipe
from transformers import TrainerControl, TrainerState

from rl.config.algorithm import KLControlSection
from rl.config.recipe import recipe_from_mapping
from rl.trainer.extensions.kl_control import KLControl
from uniar.errors import UserError


@pytest.fixture
def settings(nano_checkpoint, tmp_path) -> dict:
    return small_recipe(nano_checkpoint, tmp_path)


@pytest.mark.parametrize(
    ("kls", "factor"),
    [
        ([0.01], 1.0),
        ([0.0105], 1.005),
        ([0.0, 0.021], 1.005),  # an update's micro-batches count together
        ([0.5], 1.02),
        ([0.0], 0.98),
        ([0.5, math.nan], 1.0),  # an update that watch.nonfinite skips
        ([], 1.0),  # an update without pictures, in a run that draws
    ],
)
def test_one_update(kls, factor):
    controller = KLControl(KLControlSection(target=0.01), beta=0.04)
    for kl in kls:
        controller.measure(kl)
    controller.on_step_end(None, TrainerState(), TrainerControl())
    assert controller.beta == pytest.approx(0.04 * factor)


def test_beta_follows_the_measured_kl_and_resumes(settings, tmp_path):
    algorithm = {"beta": 0.04, "kl_control": {"target": 1e-3, "rate": 0.5}}
    trainer = {"max_steps": 4, "save_steps": 2}
    whole = run(settings, algorithm=algorithm, trainer=trainer, output_dir=str(tmp_path / "whole"))
    expected = [0.04]
    for kl in logged(whole, "kl"):
        expected.append(expected[-1] * (1 + 0.5 * min(max(kl / 1e-3 - 1, -0.2), 0.2)))
    assert logged(whole, "beta") == pytest.approx(expected[:-1])
    assert expected[1] < 0.04  # the policy starts at the reference
    run(settings, algorithm=algorithm, trainer={**trainer, "max_steps": 2}, output_dir=str(tmp_path / "parts"))
    parts = run(settings, resume=True, algorithm=algorithm, trainer=trainer, output_dir=str(tmp_path / "parts"))
    for key in ("beta", "loss", "grad_norm"):
        assert logged(parts, key) == logged(whole, key), key


def test_beta_that_is_none_cannot_be_steered(settings):
    algorithm = {"beta": 0, "kl_control": {"target": 1e-3}}
    with pytest.raises(UserError, match=r"algorithm\.kl_control steers algorithm\.beta, which is 0; start it above 0"):
        recipe_from_mapping({**settings, "algorithm": algorithm})


@pytest.mark.slow
def test_two_processes_steer_as_one_does(settings, tmp_path):
    sections = {"algorithm": {"beta": 0.04, "kl_control": {"target": 1e-3}}}
    one = run(settings, **sections)
    trainer = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    two, _ = launch(settings, 2, **sections, trainer=trainer, output_dir=str(tmp_path / "two"))
    assert logged(two, "beta") == pytest.approx(logged(one, "beta"), rel=1e-6)
