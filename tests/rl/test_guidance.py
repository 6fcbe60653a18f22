import numpy as np
import pytest
import torch

from rl.algorithm import bernoulli
from rl.algorithm.guidance import CONVENTIONS, Gaps, GuidanceSettings

SHAPE = (2, 3, 2, 4, 5)


@pytest.fixture
def branches():
    torch.manual_seed(0)
    return tuple(torch.randn(2, *SHAPE, requires_grad=True).unbind())


def test_conventions_are_a_closed_set():
    assert list(CONVENTIONS) == ["none", "guided", "guided_detach", "conditional"]
    with pytest.raises(ValueError, match="unknown guidance convention 'cfg'; expected one of none, guided"):
        GuidanceSettings("cfg", 2.0, 1.0)


@pytest.mark.parametrize("convention", ["guided", "guided_detach", "conditional"])
def test_bits_are_drawn_from_the_guided_gap(branches, convention):
    cond, uncond = (branch.detach().double().numpy() for branch in branches)
    expected = (uncond + 2.5 * (cond - uncond)) / 0.7
    assert np.allclose(GuidanceSettings(convention, 2.5, 0.7).drawn_gap(Gaps(*branches)).detach(), expected, atol=1e-5)


def test_what_is_trained_is_what_drew_but_for_conditional(branches):
    for convention in ("none", "guided", "guided_detach"):
        drawn = GuidanceSettings(convention, 2.5, 0.7).drawn_gap(Gaps(*branches))
        assert torch.equal(GuidanceSettings(convention, 2.5, 0.7).policy_gap(Gaps(*branches)), drawn)
    trained = GuidanceSettings("conditional", 2.5, 0.7).policy_gap(Gaps(branches[0], None))
    assert torch.equal(trained, branches[0] / 0.7)
    assert torch.equal(trained, GuidanceSettings("none", 1.0, 0.7).policy_gap(Gaps(branches[0], None)))
    assert not torch.allclose(trained, GuidanceSettings("conditional", 2.5, 0.7).drawn_gap(Gaps(*branches)))


@pytest.mark.parametrize(
    ("convention", "by_cond", "by_uncond"),
    [("none", 1.0, None), ("guided", 2.5, -1.5), ("guided_detach", 2.5, None), ("conditional", 1.0, None)],
)
def test_gradient_of_each_branch(branches, convention, by_cond, by_uncond):
    gap = GuidanceSettings(convention, 2.5, 0.5).policy_gap(Gaps(*branches))
    cond, uncond = torch.autograd.grad(gap.sum(), branches, allow_unused=True)
    assert torch.allclose(cond, torch.full(SHAPE, by_cond / 0.5))
    if by_uncond is None:
        assert uncond is None
    else:
        assert torch.allclose(uncond, torch.full(SHAPE, by_uncond / 0.5))


def test_guidance_one_is_the_conditional_branch(branches):
    plain = GuidanceSettings("none", 1.0, 0.7).policy_gap(Gaps(branches[0], None))
    assert torch.allclose(GuidanceSettings("guided", 1.0, 0.7).policy_gap(Gaps(*branches)), plain, atol=1e-6)


def test_mismatch_of_conditional_is_the_kl_of_drawn_from_trained(branches):
    cond, uncond = (branch.detach().double().numpy() for branch in branches)
    p, q = (1 / (1 + np.exp(-gap / 0.7)) for gap in (uncond + 2.5 * (cond - uncond), cond))
    expected = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    found = GuidanceSettings("conditional", 2.5, 0.7).mismatch(Gaps(*branches))
    assert found.shape == SHAPE
    assert not found.requires_grad
    assert np.allclose(found, expected, atol=1e-6)
    assert found.mean() > 0.01
    assert GuidanceSettings("conditional", 1.0, 0.7).mismatch(Gaps(*branches)).amax() < 1e-10


def test_a_missing_branch_or_temperature_is_an_error(branches):
    alone = Gaps(branches[0], None)
    for gap in (GuidanceSettings.drawn_gap, GuidanceSettings.policy_gap):
        with pytest.raises(ValueError, match="guidance guided needs the gaps of the unconditional branch"):
            gap(GuidanceSettings("guided", 2.0, 1.0), alone)
    with pytest.raises(ValueError, match="temperature is 0; a policy needs one above 0"):
        GuidanceSettings("guided", 2.0, 0.0)
    with pytest.raises(ValueError, match="guidance conditional needs"):
        GuidanceSettings("conditional", 2.0, 1.0).drawn_gap(Gaps(branches[0], None))


def test_cold_guided_gaps_have_finite_losses():
    """T = 0.1 at guidance 2.5 multiplies raw gaps by up to 40: 5 becomes 200."""
    cond, uncond = torch.tensor([5.0, -5.0], requires_grad=True), torch.tensor([-5.0, 5.0], requires_grad=True)
    gap = GuidanceSettings("guided", 2.5, 0.1).policy_gap(Gaps(cond, uncond))
    assert torch.allclose(gap, torch.tensor([200.0, -200.0]))
    value = bernoulli.log_prob(torch.tensor([0, 1]), gap) + bernoulli.kl(gap, -gap.detach()) + bernoulli.entropy(gap)
    assert value.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value.sum(), (cond, uncond)))
