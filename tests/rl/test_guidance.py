import numpy as np
import pytest
import torch

from rl.algorithm import bernoulli
from rl.algorithm.guidance import CONVENTIONS, conditional_mismatch, policy_gap, rollout_gap

SHAPE = (2, 3, 2, 4, 5)


@pytest.fixture
def branches():
    torch.manual_seed(0)
    return tuple(torch.randn(2, *SHAPE, requires_grad=True).unbind())


def test_conventions_are_a_closed_set(branches):
    assert CONVENTIONS == ("none", "guided", "guided_detach", "conditional")
    for function in (rollout_gap, policy_gap):
        with pytest.raises(ValueError, match="unknown guidance convention 'cfg'; expected one of none, guided"):
            function(*branches, "cfg", 2.0, 1.0)


@pytest.mark.parametrize("convention", ["guided", "guided_detach", "conditional"])
def test_bits_are_drawn_from_the_guided_gap(branches, convention):
    cond, uncond = (branch.detach().double().numpy() for branch in branches)
    expected = (uncond + 2.5 * (cond - uncond)) / 0.7
    assert np.allclose(rollout_gap(*branches, convention, 2.5, 0.7).detach(), expected, atol=1e-5)


def test_what_is_trained_is_what_drew_but_for_conditional(branches):
    for convention in ("none", "guided", "guided_detach"):
        drawn = rollout_gap(*branches, convention, 2.5, 0.7)
        assert torch.equal(policy_gap(*branches, convention, 2.5, 0.7), drawn)
    trained = policy_gap(branches[0], None, "conditional", 2.5, 0.7)
    assert torch.equal(trained, branches[0] / 0.7)
    assert torch.equal(trained, policy_gap(branches[0], None, "none", 1.0, 0.7))
    assert not torch.allclose(trained, rollout_gap(*branches, "conditional", 2.5, 0.7))


@pytest.mark.parametrize(
    ("convention", "by_cond", "by_uncond"),
    [("none", 1.0, None), ("guided", 2.5, -1.5), ("guided_detach", 2.5, None), ("conditional", 1.0, None)],
)
def test_gradient_of_each_branch(branches, convention, by_cond, by_uncond):
    gap = policy_gap(*branches, convention, 2.5, 0.5)
    cond, uncond = torch.autograd.grad(gap.sum(), branches, allow_unused=True)
    assert torch.allclose(cond, torch.full(SHAPE, by_cond / 0.5))
    if by_uncond is None:
        assert uncond is None
    else:
        assert torch.allclose(uncond, torch.full(SHAPE, by_uncond / 0.5))


def test_guidance_one_is_the_conditional_branch(branches):
    plain = policy_gap(branches[0], None, "none", 1.0, 0.7)
    assert torch.allclose(policy_gap(*branches, "guided", 1.0, 0.7), plain, atol=1e-6)


def test_mismatch_of_conditional_is_the_kl_of_drawn_from_trained(branches):
    cond, uncond = (branch.detach().double().numpy() for branch in branches)
    p, q = (1 / (1 + np.exp(-gap / 0.7)) for gap in (uncond + 2.5 * (cond - uncond), cond))
    expected = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    found = conditional_mismatch(*branches, 2.5, 0.7)
    assert found.shape == SHAPE
    assert not found.requires_grad
    assert np.allclose(found, expected, atol=1e-6)
    assert found.mean() > 0.01
    assert conditional_mismatch(*branches, 1.0, 0.7).amax() < 1e-10


def test_a_missing_branch_or_temperature_is_an_error(branches):
    for function in (rollout_gap, policy_gap):
        with pytest.raises(ValueError, match="guidance guided needs the gaps of the unconditional branch"):
            function(branches[0], None, "guided", 2.0, 1.0)
        with pytest.raises(ValueError, match="temperature is 0; a policy needs one above 0"):
            function(*branches, "guided", 2.0, 0.0)
    with pytest.raises(ValueError, match="guidance conditional needs"):
        rollout_gap(branches[0], None, "conditional", 2.0, 1.0)


def test_cold_guided_gaps_have_finite_losses():
    """T = 0.1 at guidance 2.5 multiplies raw gaps by up to 40: 5 becomes 200."""
    cond, uncond = torch.tensor([5.0, -5.0], requires_grad=True), torch.tensor([-5.0, 5.0], requires_grad=True)
    gap = policy_gap(cond, uncond, "guided", 2.5, 0.1)
    assert torch.allclose(gap, torch.tensor([200.0, -200.0]))
    value = bernoulli.log_prob(torch.tensor([0, 1]), gap) + bernoulli.kl(gap, -gap.detach()) + bernoulli.entropy(gap)
    assert value.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value.sum(), (cond, uncond)))
