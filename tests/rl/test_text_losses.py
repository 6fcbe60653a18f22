"""Losses of written tokens, against plain numpy in float64 on the whole vocabulary."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from rl.algorithm.losses import METRICS, LossInputs, LossSettings, TokenInputs, policy_loss
from rl.algorithm.losses.settings import RatioLevel
from uniar.errors import UserError

LENGTHS = (6, 3, 1)
TEXTS, LONGEST, VOCABULARY = len(LENGTHS), max(LENGTHS), 7
ADVANTAGES = torch.tensor([1.3, -0.8, 0.4], dtype=torch.float64)
MASK = torch.arange(LONGEST) < torch.tensor(LENGTHS)[:, None]
VARIANTS = [(loss, level) for loss in ("grpo", "dr_grpo", "dapo", "cispo") for level in ("bit", "sequence")]
VARIANTS += [("gspo", "sequence"), ("dppo_tv", "bit")]
BETA, BONUS = 0.3, 0.2

noise = torch.randn(4, TEXTS, LONGEST, VOCABULARY, generator=torch.Generator().manual_seed(27), dtype=torch.float64)
LOGITS, OLD, REFERENCE = noise[0], noise[0] + 0.9 * noise[1], noise[0] + 0.3 * noise[2]
TOKENS = noise[3].argmax(-1)


def texts(logits: torch.Tensor = LOGITS, **others) -> TokenInputs:
    """As a replay gives them: of each position, numbers made from the logits of the whole vocabulary."""

    def written(logp: torch.Tensor) -> torch.Tensor:
        return logp.gather(-1, TOKENS[..., None]).squeeze(-1)

    logp, old, ref = (each.to(logits.dtype).log_softmax(-1) for each in (logits, OLD, REFERENCE))
    given = {
        "advantages": ADVANTAGES,
        "logp": written(logp),
        "old_logp": written(old),
        "mask": MASK,
        "entropy": -(logp.exp() * logp).sum(-1),
        "ref_logp": written(ref),
        "ref_kl": (logp.exp() * (logp - ref)).sum(-1),
    }
    return TokenInputs(**given | others)


def probabilities(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits)
    return powers / powers.sum(-1, keepdims=True)


def by_hand(loss: str, level: str, logits: np.ndarray, *, centred=False, kl=None, bonus=0.0, cap=math.inf) -> float:
    """The whole loss, one token after the other, as the papers write it. What they write as sg(·) is of LOGITS."""
    p, held = probabilities(logits), probabilities(LOGITS.numpy())
    old, ref = probabilities(OLD.numpy()), probabilities(REFERENCE.numpy())
    sums = []
    for b, (length, advantage) in enumerate(zip(LENGTHS, ADVANTAGES.tolist(), strict=True)):
        places = [(b, t, int(TOKENS[b, t])) for t in range(length)]
        own = [p[place] / old[place] for place in places]
        frozen = [held[place] / old[place] for place in places]
        if level == "sequence":
            drift = [r - 1 - math.log(r) if centred else 0.0 for r in frozen]
            own = [math.exp(np.mean(np.log(own) + drift))] * length
            frozen = [math.exp(np.mean(np.log(frozen) + drift))] * length
        root, terms = math.sqrt(length) if level == "sequence" else 1.0, []
        for place, r, fixed in zip(places, own, frozen, strict=True):
            r, fixed = min(r, cap), min(fixed, cap)
            if loss == "cispo":
                term = -min(fixed, 1 + 4 / root) * advantage * math.log(p[place])
            elif loss == "dppo_tv":
                moved = held[place] - old[place]
                inside = moved <= 0.1 if advantage > 0 else moved >= -0.1
                term = -advantage * min(fixed, 20) * math.log(p[place]) * inside
            else:
                low, high = 0.2 / root, (0.28 if loss == "dapo" else 0.2) / root
                term = -min(r * advantage, min(max(r, 1 - low), 1 + high) * advantage)
            whole, other, there = p[place[:2]], ref[place[:2]], math.log(ref[place] / p[place])
            if kl is not None:
                exact = (whole * np.log(whole / other)).sum()
                kinds = {"exact": exact, "k1": -there, "k2": there**2 / 2, "k3": math.exp(there) - 1 - there}
                term += BETA * kinds[kl]
            terms.append(term + bonus * (whole * np.log(whole)).sum())
        sums.append(sum(terms))
    if loss in ("grpo", "gspo"):
        return float(np.mean([total / length for total, length in zip(sums, LENGTHS, strict=True)]))
    if loss == "dr_grpo":
        return float(np.mean(sums) / LONGEST)
    return sum(sums) / sum(LENGTHS)


@pytest.mark.parametrize(("loss", "level"), VARIANTS)
@pytest.mark.parametrize("centred", [False, True])
def test_value_of_each_loss(loss, level, centred):
    found, metrics = policy_loss(texts(), LossSettings(loss, level, centred=centred))
    assert found.item() == pytest.approx(by_hand(loss, level, LOGITS.numpy(), centred=centred), rel=1e-12)
    assert metrics.keys() == METRICS.keys()
    assert 0 < metrics["clip_ratio/region_mean"] < 1
    single = policy_loss(texts(LOGITS.float()), LossSettings(loss, level, centred=centred))[0]
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(found.item(), abs=1e-6)


@pytest.mark.parametrize("kind", ["exact", "k1", "k2", "k3"])
@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo"])
def test_kl_and_entropy_terms(loss, kind):
    settings = LossSettings(loss, beta=BETA, kl=kind, entropy_coef=BONUS)
    found, metrics = policy_loss(texts(), settings)
    assert found.item() == pytest.approx(by_hand(loss, "bit", LOGITS.numpy(), kl=kind, bonus=BONUS), rel=1e-12)
    inputs = texts()
    assert metrics["entropy"].item() == pytest.approx(inputs.entropy[MASK].mean().item())
    assert metrics["kl"].item() == pytest.approx(inputs.kl_to_reference(kind)[MASK].mean().item())


@pytest.mark.parametrize(("loss", "level"), VARIANTS)
@pytest.mark.parametrize("centred", [False, True])
def test_gradient_by_finite_differences(loss, level, centred):
    """To each logit of the vocabulary, the KL term and the entropy bonus included; 0 in the padding."""
    logits, step = LOGITS.clone().requires_grad_(), 1e-5
    settings = LossSettings(loss, level, centred=centred, beta=BETA, entropy_coef=BONUS)
    (found,) = torch.autograd.grad(policy_loss(texts(logits), settings)[0], logits)
    assert not found[~MASK].any()
    for place in [
        (0, 0, 1),
        (0, 4, int(TOKENS[0, 4])),
        (1, 0, int(TOKENS[1, 0])),
        (1, 2, 3),
        (2, 0, int(TOKENS[2, 0])),
    ]:
        moved = LOGITS.numpy().copy()
        ends = []
        for change in (step, -2 * step):
            moved[place] += change
            ends.append(by_hand(loss, level, moved, centred=centred, kl="exact", bonus=BONUS))
        assert found[place].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-9)


def test_a_token_is_a_visual_token_of_one_bit():
    for centred in (False, True):
        tokens = [
            policy_loss(texts(), LossSettings("grpo", level, centred=centred)) for level in ("bit", "visual_token")
        ]
        assert tokens[0] == tokens[1]


@pytest.mark.parametrize(("loss", "level"), VARIANTS)
def test_padding_counts_for_nothing(loss, level):
    """NaN in it, and more of it: neither value, gradient nor metrics change, but for the constant of dr_grpo."""
    settings = LossSettings(loss, level, centred=True, beta=BETA, entropy_coef=BONUS)
    clean, dirty = LOGITS.clone().requires_grad_(), LOGITS.clone()
    dirty[~MASK] = math.nan
    dirty.requires_grad_()
    (value, metrics), (other, others) = policy_loss(texts(clean), settings), policy_loss(texts(dirty), settings)
    assert (value, metrics) == (other, others)
    assert torch.equal(*(torch.autograd.grad(each, at)[0][MASK] for each, at in ((value, clean), (other, dirty))))
    wider = {
        name: torch.nn.functional.pad(getattr(texts(), name).squeeze(-1), (0, 4), value=0 if name == "mask" else 2.5)
        for name in ("logp", "old_logp", "mask", "entropy", "ref_logp", "ref_kl")
    }
    padded, wide = policy_loss(TokenInputs(advantages=ADVANTAGES, **wider), settings)
    constant = (LONGEST + 4) / LONGEST if loss == "dr_grpo" else 1
    assert constant * padded.item() == pytest.approx(value.item(), rel=1e-12)
    for name in METRICS.keys() - {"policy_loss"}:
        assert wide[name].item() == pytest.approx(metrics[name].item(), rel=1e-12)


def test_a_text_of_no_token_is_finite():
    """What a process hands in that has no text where others have some."""
    logits = LOGITS.clone().requires_grad_()
    inputs = texts(logits, mask=torch.zeros(TEXTS, LONGEST))
    for loss, level in VARIANTS:
        found, metrics = policy_loss(inputs, LossSettings(loss, level, beta=BETA, entropy_coef=BONUS))
        assert found == 0
        assert all(value.isfinite() for value in metrics.values())
        assert not torch.autograd.grad(found, logits, retain_graph=True)[0].any()


def test_metrics_towards_the_old_policy():
    _, metrics = policy_loss(texts(), LossSettings("grpo"))
    p, old = (
        np.concatenate([probabilities(logits.numpy())[b, np.arange(n), TOKENS[b, :n]] for b, n in enumerate(LENGTHS)])
        for logits in (LOGITS, OLD)
    )
    assert metrics["tv/mean"].item() == pytest.approx(np.abs(p - old).mean())
    assert metrics["tv/max"].item() == pytest.approx(np.abs(p - old).max())
    assert metrics["ratio/max"].item() == pytest.approx((p / old).max())
    assert metrics["approx_kl"].item() == pytest.approx((p / old - 1 - np.log(p / old)).mean())
    _, metrics = policy_loss(texts(old_logp=None, ref_kl=None, ref_logp=None), LossSettings("grpo"))
    assert metrics["ratio/max"] == 1
    assert metrics["approx_kl"] == metrics["tv/max"] == metrics["clip_ratio/region_mean"] == 0
    assert "kl" not in metrics


@pytest.mark.parametrize("level", [None, "sequence"])
@pytest.mark.parametrize("loss", ["grpo", "gspo", "dapo", "cispo"])
def test_the_range_of_a_ratio_is_narrowed_by_the_text_s_own_length(loss, level: RatioLevel | None):
    """One step past its range from the old policy, each text is clipped or capped, half a step short of it none is."""
    limit = {"dapo": 0.28, "cispo": 4.0}.get(loss, 0.2)
    wide = [1.0] * TEXTS if (loss, level) in (("grpo", None), ("dapo", None), ("cispo", None)) else LENGTHS
    for past, share in ((1.01, 1.0), (0.99, 0.0)):
        gain = torch.tensor([math.log(1 + past * limit / math.sqrt(m)) for m in wide]).double()
        old = torch.full((TEXTS, LONGEST), -9.0).double()
        inputs = texts(advantages=torch.ones(TEXTS), logp=old + gain[:, None], old_logp=old)
        _, metrics = policy_loss(inputs, LossSettings(loss, level))
        assert metrics["clip_ratio/high_mean"] == share


@pytest.mark.parametrize(("loss", "level"), VARIANTS)
def test_gradients_stay_finite_when_policies_are_opposites(loss, level):
    logp = torch.full((TEXTS, LONGEST), -200.0, requires_grad=True)
    for old in (torch.full_like(logp, -1e-6).detach(), torch.full_like(logp, -400.0).detach()):
        inputs = texts(logp=logp, old_logp=old, entropy=logp * 0 + 1, ref_logp=old, ref_kl=logp * 0 + 1)
        for kind in ("exact", "k3"):
            found, metrics = policy_loss(inputs, LossSettings(loss, level, centred=True, beta=0.01, kl=kind))
            assert all(value.isfinite() for value in metrics.values())
            assert torch.autograd.grad(found, logp, retain_graph=True)[0].isfinite().all()


def test_the_entropy_bonus_is_averaged_as_the_terms_are():
    """Of bits, too: a small picture's counts as much as a large one's in grpo, and bit by bit in dapo."""
    gap = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).double()
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    inputs = LossInputs(torch.zeros(2), torch.ones_like(gap), gap, mask=mask)
    p = torch.sigmoid(gap)
    entropy = -p * p.log() - (1 - p) * (1 - p).log()
    expected = {"grpo": (entropy[0].mean() + entropy[1, 0].mean()) / 2, "dapo": entropy[mask.bool()].mean()}
    expected["dr_grpo"] = entropy[mask.bool()].sum() / 24
    for loss, value in expected.items():
        found, metrics = policy_loss(inputs, LossSettings(loss, entropy_coef=0.5))
        assert -2 * found.item() == pytest.approx(value.item())
        assert metrics["entropy"].item() == pytest.approx(expected["dapo"].item())


# A loss of one's own --------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text(encoding="utf-8")
[EXAMPLE] = re.findall(r"```python\n(.*?)```", PAGE.split("### A loss of your own")[1], flags=re.DOTALL)


def test_the_page_s_example_takes_texts(tmp_path):
    (tmp_path / "spo.py").write_text(EXAMPLE)
    for level, root in (("bit", torch.ones(TEXTS)), ("sequence", torch.tensor(LENGTHS).sqrt())):
        inputs = texts()
        found, _ = policy_loss(inputs, LossSettings(f"{tmp_path / 'spo.py'}:spo", level))
        log_ratio, advantages = (inputs.logp - inputs.old_logp).squeeze(-1), ADVANTAGES[:, None]
        if level == "sequence":
            log_ratio = (log_ratio.sum(1) / torch.tensor(LENGTHS))[:, None].expand(MASK.shape)
        terms = advantages.abs() * root[:, None] / 0.4 * (log_ratio.exp() - 1) ** 2 - log_ratio.exp() * advantages
        assert found.item() == pytest.approx(terms[MASK].mean().item(), rel=1e-6)


def test_a_loss_that_reads_gaps_says_so(tmp_path):
    (tmp_path / "mine.py").write_text("def mine(inputs, ratio, settings):\n    return ratio * inputs.gap\n")
    message = "mine.py:mine raised AttributeError: 'TokenInputs' object has no attribute 'gap' (mine.py, line 2)."
    with pytest.raises(UserError, match=re.escape(message)):
        policy_loss(texts(), LossSettings(f"{tmp_path / 'mine.py'}:mine"))


def test_terms_of_texts_are_looked_at_though_those_of_bits_were_finite(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def mine(inputs, ratio, settings):\n    return ratio if inputs.logp.ndim > 3 else ratio / 0\n"
    )
    settings = LossSettings(f"{tmp_path / 'mine.py'}:mine")
    gap = torch.zeros(2, 3, 2, 2)
    policy_loss(LossInputs(torch.ones(2), gap, gap), settings)
    with pytest.raises(UserError, match=f"returned {sum(LENGTHS)} terms that are NaN or infinite"):
        policy_loss(texts(), settings)


# What is refused ------------------------------------------------------------------------------------------------------


def test_inputs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"logp has shape \(3, 6, 1\), expected \(B, A\)"):
        texts(logp=torch.zeros(3, 6, 1))
    with pytest.raises(ValueError, match=r"advantages have shape \(3, 6\), expected \(3,\)"):
        texts(advantages=torch.zeros(3, 6))
    with pytest.raises(ValueError, match=r"ref_kl has shape \(3, 1\), expected \(3, 6\)"):
        texts(ref_kl=torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"mask has shape \(3,\), expected \(3, 6\)"):
        texts(mask=torch.ones(3))
    with pytest.raises(ValueError, match=r"entropy is torch\.bfloat16, expected float32"):
        texts(entropy=torch.zeros(3, 6).bfloat16())


def test_a_term_without_what_it_needs_is_refused():
    with pytest.raises(ValueError, match="kl is exact and needs ref_kl, which is None"):
        policy_loss(texts(ref_kl=None), LossSettings("grpo"))
    with pytest.raises(ValueError, match="kl is k3 and needs ref_logp, which is None"):
        policy_loss(texts(ref_logp=None), LossSettings("grpo", kl="k3"))
    with pytest.raises(ValueError, match=r"beta is 0.1, and the KL term needs a reference"):
        policy_loss(texts(ref_logp=None, ref_kl=None), LossSettings("grpo", beta=0.1))
    logits = LOGITS.clone().requires_grad_()
    for name, settings in (
        ("ref_kl", LossSettings("grpo", beta=0.5)),
        ("entropy", LossSettings("grpo", entropy_coef=0.5)),
    ):
        inputs = texts(logits, **{name: getattr(texts(), name).squeeze(-1)})
        with pytest.raises(ValueError, match="has a weight, but its values were given without gradient"):
            policy_loss(inputs, settings)
        policy_loss(inputs, LossSettings("grpo"))
