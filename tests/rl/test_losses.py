import math
import re
import typing
from pathlib import Path

import numpy as np
import pytest
import torch

from rl.algorithm import losses
from rl.algorithm.guidance import CONVENTIONS
from rl.algorithm.losses import LOSSES, LossInputs, LossSettings
from rl.algorithm.losses.settings import RatioLevel
from rl.config.algorithm import AdvantageSection, AlgorithmSection, TextSection
from uniar.errors import UserError
from uniar.reading.settings import build, settings_of
from uniar.reading.yaml_files import parse_yaml

SHAPE = (3, 4, 2, 4, 3)  # B, T, L, S, K
PER_TOKEN, PER_SAMPLE = 24, 96
LEVELS = {"bit": 1, "visual_token": PER_TOKEN, "sequence": PER_SAMPLE}
VARIANTS = [(loss, level) for loss in ("grpo", "dr_grpo", "dapo", "cispo") for level in LEVELS]
VARIANTS += [("gspo", "sequence"), ("dppo_tv", "bit")]


def policy_loss(inputs: LossInputs, loss: str = "grpo", **settings) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return losses.policy_loss(inputs, LossSettings(loss, **settings))


def of_probabilities(old: list[float], new: torch.Tensor | list[float], advantage: float) -> LossInputs:
    """One sample, a bit per token, each drawn as 1 with these probabilities."""
    old, new = (torch.as_tensor(p, dtype=torch.float64).reshape(1, -1, 1) for p in (old, new))
    advantages = torch.tensor([advantage], dtype=torch.float64)
    return LossInputs(advantages=advantages, bits=torch.ones_like(old), gap=new.logit(), old_gap=old.logit())


def make(dtype=torch.float32, drift=0.6, **others) -> LossInputs:
    """A policy that has moved away from its old one and from its reference, on random bits."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, *SHAPE, generator=generator, dtype=torch.float64)
    gap = (noise[0] * 2).to(dtype).requires_grad_()
    return LossInputs(
        **{
            "advantages": torch.tensor([1.3, -0.8, 0.4], dtype=dtype),
            "bits": (noise[1] > 0).to(torch.uint8),
            "gap": gap,
            "old_gap": (noise[0] * 2 + drift * noise[2]).to(dtype),
            "ref_gap": (noise[0] * 2 + 0.3 * noise[3]).to(dtype),
        }
        | others
    )


def by_hand(inputs: LossInputs, loss: str, level: str, epsilon, high, delta=0.1, mask=None, cap=math.inf) -> float:
    """The policy term in plain numpy float64, one bit after the other, as the papers write it."""
    gap, old = inputs.gap.detach().double().numpy(), inputs.old_gap.double().numpy()
    sign = 2.0 * inputs.bits.numpy() - 1
    logp, old_logp = -np.logaddexp(0, -sign * gap), -np.logaddexp(0, -sign * old)
    exists = np.ones(SHAPE, bool) if mask is None else mask
    lows, highs = (np.broadcast_to(limit, SHAPE[:1]) for limit in (epsilon, high))
    sums, lengths = [], []
    for b in range(SHAPE[0]):
        advantage, terms = float(inputs.advantages[b]), []
        for place in np.ndindex(*SHAPE[1:]):
            if not exists[b][place]:
                continue
            fellows = {"bit": (place,), "visual_token": (place[0],), "sequence": ()}[level]
            block = (logp - old_logp)[b][fellows[0]] if fellows else (logp - old_logp)[b]
            kept = exists[b][fellows[0]] if fellows else exists[b]
            r = min(math.exp(np.mean(block[kept] if level != "bit" else block)), cap)
            lp = logp[b][place]
            if loss == "cispo":
                term = -min(r, highs[b]) * advantage * lp
            elif loss == "dppo_tv":
                moved = math.exp(lp) - math.exp(old_logp[b][place])
                inside = moved <= delta if advantage > 0 else moved >= -delta
                term = -advantage * min(r, 20) * lp * inside
            else:
                term = -min(r * advantage, min(max(r, 1 - lows[b]), 1 + highs[b]) * advantage)
            terms.append(term)
        sums.append(sum(terms))
        lengths.append(len(terms))
    if loss in ("grpo", "gspo"):
        return float(np.mean([total / n for total, n in zip(sums, lengths, strict=True)]))
    if loss == "dr_grpo":
        return float(np.mean([total / PER_SAMPLE for total in sums]))
    return sum(sums) / sum(lengths)


def defaults(loss: str, level: str, exists: np.ndarray | None = None) -> tuple:
    """The documented ones, written out; of each sample, where not all of its bits exist."""
    padded = exists is not None and level == "sequence"
    root = np.sqrt(exists.reshape(len(exists), -1).sum(1)) if padded else math.sqrt(LEVELS[level])
    return 0.2 / root, {"dapo": 0.28 / root, "cispo": 1 + 4 / root}.get(loss, 0.2 / root)


@pytest.mark.parametrize(("loss", "level"), VARIANTS)
@pytest.mark.parametrize("drift", [0.6, 0.05])
def test_value_of_each_loss(loss, level, drift):
    inputs = make(drift=drift)
    found, metrics = policy_loss(inputs, loss=loss, level=level)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(by_hand(inputs, loss, level, *defaults(loss, level)), abs=1e-6)
    if drift == 0.6 and loss != "cispo":
        assert 0 < metrics["clip_ratio/region_mean"] < 1


@pytest.mark.parametrize(
    ("loss", "level", "settings", "limits"),
    [
        ("grpo", "bit", {"epsilon": 0.1}, (0.1, 0.1)),
        ("grpo", "bit", {"epsilon": 0.1, "epsilon_high": 0.4}, (0.1, 0.4)),
        ("grpo", "bit", {"epsilon_high": 0.4}, (0.2, 0.4)),
        ("dapo", "bit", {"epsilon": 0.1}, (0.1, 0.28)),
        ("gspo", "sequence", {"epsilon": 3e-4, "epsilon_high": 4e-4}, (3e-4, 4e-4)),
        ("cispo", "bit", {"epsilon_high": 1.5}, (None, 1.5)),
    ],
)
def test_a_given_range_is_taken_as_it_is(loss, level, settings, limits):
    inputs = make()
    assert policy_loss(inputs, loss=loss, level=level, **settings)[0].item() == pytest.approx(
        by_hand(inputs, loss, level, *limits), abs=1e-6
    )
    found = LOSSES[loss].clip_range(LossSettings(loss, level, **settings), inputs.narrowing(level))
    assert found == ((0.0 if limits[0] is None else limits[0]), limits[1])


def test_dppo_bounds_the_change_of_the_probability():
    """0.01 → 0.02 doubles the ratio, 0.90 → 0.97 hardly moves it; only the second leaves δ = 0.05."""
    new = torch.tensor([0.02, 0.97], dtype=torch.float64, requires_grad=True)
    inputs = of_probabilities([0.01, 0.90], new, 1.0)
    loss, metrics = policy_loss(inputs, loss="dppo_tv", delta=0.05)
    assert loss.item() == pytest.approx(-2 * math.log(0.02) / 2)
    assert torch.autograd.grad(loss, new, retain_graph=True)[0].tolist() == pytest.approx([-2 / 0.02 / 2, 0])
    assert (metrics["clip_ratio/high_mean"].item(), metrics["clip_ratio/low_mean"].item()) == (0.5, 0)
    clipped = policy_loss(inputs, loss="grpo")[0]
    assert torch.autograd.grad(clipped, new)[0].tolist() == pytest.approx([0, -1 / 0.90 / 2])
    # A bit that has moved far, but against its advantage, is not dropped; the ratio stops at 20.
    back = of_probabilities([1e-3, 1e-3], [0.02, 0.97], -1.0)
    assert policy_loss(back, loss="dppo_tv", delta=0.05)[0].item() == pytest.approx(
        (20 * math.log(0.02) + 20 * math.log(0.97)) / 2
    )


def test_cispo_keeps_the_gradient_where_grpo_drops_it():
    def slope(old: float, loss: str, **settings) -> float:
        """The derivative with respect to log p, of a bit whose log p was `old` and is -0.1."""
        logp = torch.tensor([-0.1], dtype=torch.float64, requires_grad=True)
        found, _ = policy_loss(of_probabilities([math.exp(old)], logp.exp(), 1.0), loss=loss, **settings)
        return torch.autograd.grad(found, logp)[0].item()

    assert slope(-3.0, "grpo") == 0
    assert slope(-3.0, "cispo") == pytest.approx(-5)
    assert slope(-0.001, "cispo") == pytest.approx(-math.exp(-0.099))
    assert slope(-0.001, "cispo", epsilon=0.05) == pytest.approx(-0.95)


# The same gradient on policy -----------------------------------------------------------------------------------------


def gradient(weight: torch.Tensor, features: torch.Tensor, inputs: dict, moved: float = 0.0, **settings):
    gap = (features * weight).sum(-1)
    old_gap = gap.detach() + moved * inputs["noise"]
    rest = {name: value for name, value in inputs.items() if name != "noise"}
    loss, _ = policy_loss(LossInputs(gap=gap, old_gap=old_gap, **rest), **settings)
    return torch.autograd.grad(loss, weight)[0]


@pytest.fixture
def model():
    """A linear policy in float64: features of each bit and shared weights."""
    torch.manual_seed(0)
    inputs = {
        "advantages": torch.tensor([1.3, -0.8, 0.4]).double(),
        "bits": torch.rand(SHAPE) > 0.5,
        "noise": torch.randn(SHAPE).double(),
    }
    return torch.randn(5, dtype=torch.float64, requires_grad=True), torch.randn(*SHAPE, 5).double(), inputs


@pytest.mark.parametrize(("loss", "level"), VARIANTS)
def test_all_losses_and_levels_agree_on_policy(model, loss, level):
    expected = gradient(*model, loss="grpo", level="bit")
    assert expected.abs().amax() > 0.01
    assert torch.allclose(gradient(*model, loss=loss, level=level), expected, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(gradient(*model, moved=0.5, loss=loss, level=level), expected, rtol=1e-2)


@pytest.mark.parametrize("level", LEVELS)
def test_levels_agree_on_policy_with_padding(model, level):
    weight, features, inputs = model
    inputs["mask"] = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    for loss in ("grpo", "dr_grpo", "dapo", "cispo"):
        expected = gradient(weight, features, inputs, loss=loss, level="bit")
        assert torch.allclose(gradient(weight, features, inputs, loss=loss, level=level), expected, rtol=1e-12)


# KL, entropy, padding ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["exact", "k1", "k2", "k3"])
@pytest.mark.parametrize("loss", ["grpo", "cispo", "dr_grpo"])
def test_kl_and_entropy_terms(kind, loss):
    inputs = make()
    plain, _ = policy_loss(inputs, loss=loss)
    found, metrics = policy_loss(inputs, loss=loss, beta=0.5, kl=kind, entropy_coef=0.1)
    gap, ref = inputs.gap.detach().double().numpy(), inputs.ref_gap.double().numpy()
    sign = 2.0 * inputs.bits.numpy() - 1
    p = 1 / (1 + np.exp(-gap))
    entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
    r = -np.logaddexp(0, -sign * ref) + np.logaddexp(0, -sign * gap)
    exact = p * (np.logaddexp(0, -ref) - np.logaddexp(0, -gap)) + (1 - p) * (
        np.logaddexp(0, ref) - np.logaddexp(0, gap)
    )
    kl = {"exact": exact, "k1": -r, "k2": r * r / 2, "k3": np.exp(r) - 1 - r}[kind].mean()
    assert metrics["kl"].item() == pytest.approx(kl, abs=1e-6)
    assert metrics["entropy"].item() == pytest.approx(entropy.mean(), abs=1e-6)
    assert metrics["policy_loss"].item() == plain.item()
    assert (found - plain).item() == pytest.approx(0.5 * kl - 0.1 * entropy.mean(), abs=2e-6)


def test_gradient_of_the_kl_term_is_closed_form():
    inputs = make(torch.float64, advantages=torch.zeros(3).double())
    loss, _ = policy_loss(inputs, beta=2.0)
    gap, ref = inputs.gap.detach(), inputs.ref_gap
    expected = 2.0 * torch.sigmoid(gap) * torch.sigmoid(-gap) * (gap - ref) / gap.numel()
    assert torch.allclose(torch.autograd.grad(loss, inputs.gap)[0], expected, atol=1e-15)


@pytest.mark.parametrize(("loss", "level"), VARIANTS)
def test_padding_counts_for_nothing(loss, level):
    """Whatever stands in the padding, NaN included, changes neither value nor gradient."""
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
    clean = make(mask=mask)
    gap = make().gap.detach()
    gap[1, 2:] = math.nan
    gap.requires_grad_()
    dirty = make(mask=mask[..., None, None, None].expand(SHAPE), gap=gap)
    found, metrics = policy_loss(dirty, loss=loss, level=level, beta=0.1, entropy_coef=0.1)
    expected, expected_metrics = policy_loss(clean, loss=loss, level=level, beta=0.1, entropy_coef=0.1)
    assert found.item() == expected.item()
    assert metrics == expected_metrics
    gradients = torch.autograd.grad(found, gap)[0]
    assert gradients.isfinite().all()
    assert not gradients[1, 2:].any()
    exists = mask[..., None, None, None].expand(SHAPE).numpy()
    reference = by_hand(make(), loss, level, *defaults(loss, level, exists), mask=exists)
    assert metrics["policy_loss"].item() == pytest.approx(reference, abs=1e-6)


def test_aggregations_differ_only_with_several_sizes():
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]])
    equal = [policy_loss(make(), loss=loss, epsilon_high=0.2)[0].item() for loss in ("grpo", "dr_grpo", "dapo")]
    assert equal == pytest.approx([equal[0]] * 3, rel=1e-5)
    mixed = [
        policy_loss(make(mask=mask), loss=loss, epsilon_high=0.2)[0].item() for loss in ("grpo", "dr_grpo", "dapo")
    ]
    assert min(abs(a - b) for a, b in ((mixed[0], mixed[1]), (mixed[0], mixed[2]), (mixed[1], mixed[2]))) > 1e-3


@pytest.mark.parametrize(("loss", "level"), VARIANTS)
def test_micro_batches_add_up(loss, level):
    whole, _ = policy_loss(make(), loss=loss, level=level)
    total = 0.0
    for rows in ([0], [1, 2]):
        full = make()
        part = LossInputs(torch.tensor([1.3, -0.8, 0.4])[rows], full.bits[rows], full.gap[rows], full.old_gap[rows])
        total += len(rows) * policy_loss(part, loss=loss, level=level)[0].item()
    assert total / 3 == pytest.approx(whole.item(), abs=1e-6)


@pytest.mark.parametrize(("loss", "level"), VARIANTS)
def test_the_cap_of_ratios(loss, level):
    capped, metrics = policy_loss(make(), loss=loss, level=level, importance_cap=1.01)
    assert metrics["ratio/max"] <= 1.0100001
    assert capped.item() == pytest.approx(by_hand(make(), loss, level, *defaults(loss, level), cap=1.01), abs=1e-6)


def test_metrics_towards_the_old_policy():
    inputs = make()
    _, metrics = policy_loss(inputs)
    p, q = (torch.sigmoid(gap.detach().double()) for gap in (inputs.gap, inputs.old_gap))
    ratio = (inputs.logp.detach().double() - inputs.old_logp.double()).exp()
    assert metrics["tv/mean"].item() == pytest.approx((p - q).abs().mean().item(), abs=1e-6)
    assert metrics["tv/max"].item() == pytest.approx((p - q).abs().max().item(), abs=1e-6)
    assert metrics["ratio/mean"].item() == pytest.approx(ratio.mean().item(), rel=1e-5)
    assert metrics["ratio/max"].item() == pytest.approx(ratio.max().item(), rel=1e-5)
    assert metrics["approx_kl"].item() == pytest.approx((ratio - 1 - ratio.log()).mean().item(), rel=1e-4)
    assert all(value.ndim == 0 and not value.requires_grad for value in metrics.values())


@pytest.mark.parametrize(("loss", "level"), VARIANTS)
def test_gradients_stay_finite_when_policies_are_opposites(loss, level):
    """Gaps of ±200, as guidance at T = 0.1 makes them: ratios of e²⁰⁰ and of e⁻²⁰⁰."""
    gap = torch.where(make().gap > 0, 200.0, -200.0).detach().requires_grad_()
    inputs = make(gap=gap, old_gap=-gap.detach(), ref_gap=-gap.detach())
    for kind in ("exact", "k3"):
        found, metrics = policy_loss(inputs, loss=loss, level=level, beta=0.01, kl=kind, entropy_coef=0.01)
        assert found.isfinite()
        assert all(value.isfinite() for value in metrics.values())
        assert torch.autograd.grad(found, gap, retain_graph=True)[0].isfinite().all()


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "ppo"}, "algorithm.loss is 'ppo', expected one of grpo, dr_grpo"),
        ({"level": "token"}, "algorithm.ratio_level is 'token', expected one of bit, visual_token, sequence"),
        ({"loss": "gspo", "level": "bit"}, "ratio_level is bit; gspo needs sequence"),
        ({"loss": "dppo_tv", "level": "sequence"}, "ratio_level is sequence; dppo_tv needs bit"),
        ({"loss": "dppo_tv", "epsilon": 0.2}, "epsilon has no use in dppo_tv, which takes delta; leave it null"),
        ({"loss": "grpo", "delta": 0.1}, "algorithm.delta has no use in grpo, which takes epsilon and epsilon_high"),
        ({"loss": "cispo", "epsilon_high": 0.28}, "epsilon_high is 0.28; for cispo it is the cap of the ratio itself"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        policy_loss(make(), **settings)


def test_inputs_that_do_not_fit_are_refused():
    gap, ones = torch.zeros(2, 4, 8), torch.ones(2)
    with pytest.raises(ValueError, match=r"beta is 0.1, and the KL term needs a reference"):
        policy_loss(LossInputs(ones, gap, gap), beta=0.1)
    with pytest.raises(ValueError, match=r"gap has shape \(2, 8\), expected \(B, T, …\)"):
        LossInputs(ones, torch.zeros(2, 8), torch.zeros(2, 8))
    with pytest.raises(ValueError, match=r"are torch\.bfloat16, expected float32"):
        LossInputs(ones, gap, gap.bfloat16())
    with pytest.raises(ValueError, match=r"advantages have shape \(2, 1\), expected \(2,\)"):
        LossInputs(torch.ones(2, 1), gap, gap)
    with pytest.raises(ValueError, match=r"old_gap has shape \(2, 4\), expected \(2, 4, 8\)"):
        LossInputs(ones, gap, gap, old_gap=torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"mask has shape \(8,\)"):
        LossInputs(ones, gap, gap, mask=torch.ones(8))


# The page that explains them ------------------------------------------------------------------------------------------


PAGE = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text(encoding="utf-8")


def test_the_page_names_every_setting_and_its_paper_settings_are_valid():
    choices = {*LOSSES, *typing.get_args(RatioLevel), *CONVENTIONS}
    sections = (
        settings_of(AlgorithmSection)
        + settings_of(AdvantageSection)
        + settings_of(TextSection)
        + ["exact", "k1", "k2", "k3"]
    )
    for name in choices | {getattr(field, "name", field) for field in sections}:
        assert re.search(rf"`(algorithm\.)?{name}[`:]", PAGE), f"docs/algorithms.md does not explain {name}"
    mappings = re.findall(r"`(\{.*?\})`(?= )", PAGE)
    assert len(mappings) >= 10
    for mapping in mappings:
        settings = build(AlgorithmSection, parse_yaml(mapping, "docs/algorithms.md")[0])
        losses.policy_loss(make(), settings.loss_settings)


def test_the_page_says_of_each_loss_what_its_file_says():
    table = PAGE.split("| `loss` | term of a bit |")[1].split("\n\n")[0]
    rows = {
        row[0]: row for row in ([cell.strip(" `") for cell in line.split(" | ")] for line in table.splitlines()[2:])
    }
    kinds = {"sample": "each image's bits, then over images", "constant": "over a constant", "batch": "all bits of the"}
    for loss in LOSSES.values():
        _, _, mean, paper = rows[f"| `{loss.name}"]
        assert paper.strip(" |") == loss.paper
        assert mean == "as grpo" or kinds[loss.aggregation] in mean


def test_no_other_file_knows_a_loss_by_its_name():
    """Of grpo it cannot be told: an estimator of advantages and TRL's own loss are called that, too."""
    root, names = Path(__file__).parents[2], "|".join(name for name in LOSSES if name != "grpo")
    for path in (path for folder in ("uniar", "rewards", "rl") for path in (root / folder).rglob("*.py")):
        if path.parent.name != "losses":
            found = re.findall(rf"\b(?:{names})\b", path.read_text(encoding="utf-8"))
            assert not found, f"{path} names {found}"
