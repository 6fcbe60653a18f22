"""Ratios that stand for many bits, without the drift that distance alone gives them."""

import math

import pytest
import torch
from support.training_runs import changed, logged, run, small_recipe

from rl.algorithm import bernoulli
from rl.algorithm.losses import LossInputs, LossSettings, policy_loss

BITS = 256, 1024
"""of an image of 512×512: visual tokens, bits per token"""
IMAGES = 16
DISTANCE = 8.8e-4
"""nats per bit"""
EPSILON = 0.2 / math.sqrt(math.prod(BITS))


def moved_policy(along: float) -> LossInputs:
    """Images drawn from an old policy that has since moved at random by DISTANCE, and so much along each image of A > 0
    and against each of A < 0 that their mean log-ratio changes by `along`."""
    generator = torch.Generator().manual_seed(0)
    advantages = torch.tensor([1.0, -1.0]).repeat(IMAGES // 2)
    old_gap = 2 * torch.randn(IMAGES, *BITS, generator=generator)
    p = torch.sigmoid(old_gap)
    bits = (torch.rand(p.shape, generator=generator) < p).float()
    variance = (p * (1 - p)).mean()
    step = torch.randn(p.shape, generator=generator) * (2 * DISTANCE / variance).sqrt()
    step += advantages[:, None, None] * (bits - p) * along / variance
    return LossInputs(advantages=advantages, bits=bits, gap=old_gap + step, old_gap=old_gap)


@pytest.mark.parametrize(
    ("along", "centred", "low", "high"),
    [
        (0.0, False, 1.0, 0.0),  # all images of A < 0, none of A > 0, though nothing has been learnt
        (0.0, True, 0.0, 0.0),
        (2 * EPSILON, False, 1.0, 0.0),  # nor would the paper's form stop those that have become likelier
        (2 * EPSILON, True, 1.0, 1.0),
        (0.5 * EPSILON, True, 0.0, 0.0),
    ],
)
def test_gspo_clips_both_ways_at_the_released_size(along, centred, low, high):
    inputs = moved_policy(along)
    _, metrics = policy_loss(inputs, LossSettings("gspo", centred=centred))
    assert metrics["approx_kl"] == pytest.approx(DISTANCE, rel=0.05)
    assert metrics["clip_ratio/low_mean"] == low / 2  # half of the images have A < 0
    assert metrics["clip_ratio/high_mean"] == high / 2
    drift = 0 if centred else DISTANCE
    assert metrics["ratio/max"].item() == pytest.approx(1 + along - drift, abs=EPSILON)
    if centred and not along:
        assert metrics["ratio/mean"].item() == pytest.approx(1, abs=EPSILON / 10)


@pytest.mark.parametrize("level", ["visual_token", "sequence"])
def test_what_it_is(level):
    """exp of the mean of (b - p_old)·(d - d_old), the log-ratio's part that depends on the bits drawn."""
    generator = torch.Generator().manual_seed(1)
    old_gap, gap = torch.randn(2, 2, 3, 8, generator=generator, dtype=torch.float64)
    bits = torch.randint(0, 2, (2, 3, 8), generator=generator).double()
    mask = torch.tensor([[True] * 3, [True, True, False]])
    inputs = LossInputs(advantages=torch.ones(2), bits=bits, gap=gap, old_gap=old_gap, mask=mask)
    _, metrics = policy_loss(inputs, LossSettings("grpo", level, centred=True))
    terms = (bits - torch.sigmoid(old_gap)) * (gap - old_gap)
    if level == "visual_token":
        expected = terms.mean(2).exp()[mask].mean()
    else:
        expected = (3 * terms[0].mean().exp() + 2 * terms[1, :2].mean().exp()) / 5
    assert metrics["ratio/mean"].item() == pytest.approx(expected.item(), rel=1e-9)


def test_its_gradient_is_that_of_the_log_probabilities():
    old_gap = torch.randn(2, 4, 8, dtype=torch.float64)
    gap = (old_gap + 1e-3 * torch.randn_like(old_gap)).requires_grad_()
    bits = torch.randint(0, 2, gap.shape).double()
    gradients = {}
    for centred in (False, True):
        inputs = LossInputs(advantages=torch.ones(2), bits=bits, gap=gap, old_gap=old_gap)
        loss, _ = policy_loss(inputs, LossSettings("gspo", epsilon=1.0, centred=centred))
        (gradients[centred],) = torch.autograd.grad(loss, gap)
    factor = bernoulli.kl(old_gap, gap.detach()).mean((1, 2), keepdim=True).exp()
    assert torch.allclose(gradients[True], factor * gradients[False], rtol=1e-12)


def test_on_policy_it_changes_nothing():
    gap = torch.randn(2, 4, 8).requires_grad_()
    bits = torch.randint(0, 2, gap.shape)
    found = {}
    for centred in (False, True):
        inputs = LossInputs(advantages=torch.tensor([0.5, -1.0]), bits=bits, gap=gap)
        loss, metrics = policy_loss(inputs, LossSettings("gspo", centred=centred))
        found[centred] = (loss, metrics["ratio/max"], *torch.autograd.grad(loss, gap))
    assert all(torch.equal(one, other) for one, other in zip(found[False], found[True], strict=True))
    assert found[True][1] == 1


def test_a_recipe_chooses(nano_checkpoint, tmp_path):
    """Two updates per rollout: the second one's ratios are centred, or lie below 1 on the whole."""
    settings = changed(
        small_recipe(nano_checkpoint, tmp_path),
        trainer={"max_steps": 2, "save_strategy": "no"},
    )
    means = {}
    for centred in (True, False):
        algorithm = {"loss": "gspo", "num_iterations": 2, "centred_ratio": centred}
        folder = run(settings, algorithm=algorithm, output_dir=str(tmp_path / str(centred)))
        first, means[centred] = logged(folder, "ratio/mean")
        assert first == 1
        distance = logged(folder, "approx_kl")[1]
    assert means[True] - means[False] == pytest.approx(distance, rel=0.3)
