import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rl.algorithm import bernoulli

GAPS = torch.tensor([-200.0, -80.0, -20.5, -3.0, -0.5, -1e-3, 0.0, 1e-3, 0.7, 4.0, 20.5, 80.0, 200.0])


def float64_kl(gap: float, ref_gap: float) -> float:
    """Σ p·log(p/q) in numpy float64, each log-probability from the side where it is exact."""
    logs = [[-np.logaddexp(0, -side * d) for side in (1.0, -1.0)] for d in (gap, ref_gap)]
    return sum(math.exp(p) * (p - q) for p, q in zip(*logs, strict=True))


def exact_small_kl(gap: float, x: float) -> float:
    """KL for a small x in float64, from its series to the sixth order (cumulants of a Bernoulli variable)."""
    p = 1 / (1 + math.exp(-gap))
    v, skew = p * (1 - p), 1 - 2 * p
    orders = [v / 2, -v * skew / 6, v * (1 - 6 * v) / 24, -v * skew * (1 - 12 * v) / 120]
    return sum(factor * x ** (power + 2) for power, factor in enumerate(orders))


def test_log_prob_and_entropy_are_those_of_the_two_probabilities():
    for gap in GAPS.double():
        p = 1 / (1 + math.exp(-gap)) if gap > 0 else math.exp(gap) / (1 + math.exp(gap))
        q = 1 / (1 + math.exp(gap)) if gap < 0 else math.exp(-gap) / (1 + math.exp(-gap))
        one, zero = (bernoulli.log_prob(torch.tensor(bit), gap).item() for bit in (1, 0))
        assert one == pytest.approx(math.log(p), rel=1e-12, abs=1e-15)
        assert zero == pytest.approx(math.log(q), rel=1e-12, abs=1e-15)
        entropy = -p * math.log(p) - q * math.log(q)
        assert bernoulli.entropy(gap).item() == pytest.approx(entropy, rel=1e-12, abs=1e-15)


def test_float32_is_as_good_as_its_digits():
    bits = torch.tensor([0, 1], dtype=torch.uint8)[:, None].expand(2, len(GAPS))
    both = GAPS.expand(2, -1)
    for function in (lambda d: bernoulli.log_prob(bits, d.expand(2, -1)), bernoulli.entropy):
        assert torch.allclose(function(GAPS).double(), function(GAPS.double()), rtol=3e-7, atol=1e-40)
    assert bernoulli.log_prob(bits, both).dtype == bernoulli.entropy(GAPS).dtype == torch.float32


@pytest.mark.parametrize("x", [1e-3, -1e-3, 3e-3, -1e-2, 0.1, -0.9, 1.1, -3.0, 20.0, -80.0, 160.0, -160.0, 400.0])
def test_exact_kl_in_float32(x):
    gaps = GAPS[GAPS.abs() <= 80]
    ref = gaps - x
    value = bernoulli.kl(gaps, ref)
    moved = (gaps.double() - ref.double()).tolist()  # what float32 made of x
    for d, r, step, found in zip(gaps.double().tolist(), ref.double().tolist(), moved, value.tolist(), strict=True):
        expected = exact_small_kl(d, step) if abs(step) <= 0.1 else float64_kl(d, r)
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-37)


def test_the_textbook_form_would_not_do():
    """What the test above is for: at x = 1e-3 the usual form is off by about as much as the value itself."""
    gap = torch.linspace(-4, 4, 101)
    ref = gap - 1e-3
    pairs = zip(gap.tolist(), (gap.double() - ref.double()).tolist(), strict=True)
    expected = torch.tensor([exact_small_kl(d, x) for d, x in pairs])
    textbook = torch.sigmoid(gap) * (gap - ref) - F.softplus(gap) + F.softplus(ref)
    assert ((textbook - expected).abs() / expected).amax() > 0.5
    assert ((bernoulli.kl(gap, ref) - expected).abs() / expected).amax() < 1e-3


def test_kl_of_equal_policies_is_zero_and_never_negative():
    torch.manual_seed(0)
    gap = torch.randn(10000) * 10
    assert torch.equal(bernoulli.kl(gap, gap), torch.zeros_like(gap))
    assert (bernoulli.kl(gap, gap + torch.randn(10000) * 1e-4) >= 0).all()


def test_kl_gradients_by_a_second_route():
    torch.manual_seed(0)
    gap, ref = torch.randn(2, 200, dtype=torch.float64, requires_grad=True).mul(3).unbind()
    textbook = torch.sigmoid(gap) * (gap - ref) - F.softplus(gap) + F.softplus(ref)
    expected = torch.autograd.grad(textbook.sum(), (gap, ref))
    found = torch.autograd.grad(bernoulli.kl(gap, ref).sum(), (gap, ref))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-10)
    leaves = [tensor.detach().requires_grad_() for tensor in (gap, ref)]
    assert torch.autograd.gradcheck(bernoulli.kl, leaves)


def test_kl_against_monte_carlo():
    torch.manual_seed(0)
    draws = 400_000
    for d, r in ((0.3, -0.4), (2.5, 1.0), (-1.0, 1.5)):
        gap, ref = (torch.tensor(value, dtype=torch.float64).expand(draws) for value in (d, r))
        bits = torch.rand(draws, dtype=torch.float64) < torch.sigmoid(gap)
        logp, ref_logp = bernoulli.log_prob(bits, gap), bernoulli.log_prob(bits, ref)
        for kind in ("k1", "k3"):  # k2 is biased
            estimates = bernoulli.kl_estimate(logp, ref_logp, kind)
            error = estimates.std().item() / math.sqrt(draws)
            assert estimates.mean().item() == pytest.approx(bernoulli.kl(gap[0], ref[0]).item(), abs=5 * error)


def test_estimators_are_their_formulas():
    logp, ref_logp = -0.2, -1.1
    r = ref_logp - logp
    expected = {"k1": -r, "k2": r * r / 2, "k3": math.exp(r) - 1 - r}
    for kind, value in expected.items():
        found = bernoulli.kl_estimate(torch.tensor(logp), torch.tensor(ref_logp), kind)
        assert found.item() == pytest.approx(value, rel=1e-5)
    with pytest.raises(ValueError, match="'k4'; expected k1, k2 or k3"):
        bernoulli.kl_estimate(torch.zeros(1), torch.zeros(1), "k4")


def test_total_variation_is_half_the_sum_over_both_values():
    gap, old = torch.tensor([0.0, 3.0, -200.0, -4.6]), torch.tensor([1.0, 2.2, 200.0, -3.9])
    p, q = (1 / (1 + np.exp(-np.float64(tensor))) for tensor in (gap, old))
    expected = (np.abs(p - q) + np.abs((1 - p) - (1 - q))) / 2
    assert np.allclose(bernoulli.total_variation(gap, old), expected, atol=1e-7)


def test_values_and_gradients_are_finite_everywhere():
    gap = GAPS[:, None].repeat(1, len(GAPS)).requires_grad_()
    other = GAPS[None, :].repeat(len(GAPS), 1).requires_grad_()
    bits = torch.arange(gap.numel()).view_as(gap) % 2
    logp, ref_logp = bernoulli.log_prob(bits, gap), bernoulli.log_prob(bits, other)
    values = [logp, bernoulli.entropy(gap), bernoulli.kl(gap, other), bernoulli.total_variation(gap, other)]
    values += [bernoulli.kl_estimate(logp, ref_logp, kind) for kind in ("k1", "k2", "k3")]
    for value in values:
        assert value.isfinite().all()
        gradients = torch.autograd.grad(value.sum(), (gap, other), retain_graph=True, allow_unused=True)
        assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)
    # A policy sure of the wrong bit is pulled back with full strength, however far off.
    assert torch.autograd.grad(logp.sum(), gap)[0].abs().amax() == 1
