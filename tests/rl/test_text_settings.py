"""`algorithm.text`: what a recipe says of the loss of written tokens."""

import pytest

from rl.algorithm.losses import LOSSES, LossSettings
from rl.config.algorithm import AlgorithmSection
from uniar.errors import UserError
from uniar.reading.settings import build


def text(**algorithm) -> LossSettings:
    return build(AlgorithmSection, algorithm).text_loss_settings


@pytest.mark.parametrize("loss", LOSSES)
def test_defaults_are_the_loss_s_own_for_tokens(loss):
    level = "sequence" if loss == "gspo" else "bit"
    assert text(loss=loss) == LossSettings(loss, level, beta=0.01)
    drawn = {"ratio_level": LOSSES[loss].levels[-1], "centred_ratio": True, "kl": "k1"}
    assert text(loss=loss, **drawn) == LossSettings(loss, level, beta=0.01)


def test_what_it_takes_over():
    shared = {"loss": "dppo_tv", "delta": 0.15, "entropy_coef": 0.3, "old_logp": "rollout", "importance_cap": 3.0}
    expected = LossSettings("dppo_tv", "bit", delta=0.15, entropy_coef=0.3, importance_cap=3.0, beta=0.01)
    assert text(**shared) == expected
    assert text(epsilon=0.1, epsilon_high=0.3) == LossSettings("grpo", "bit", beta=0.01)
    own = {"epsilon": 0.1, "epsilon_high": 0.3, "kl": "k3"}
    assert text(text=own) == LossSettings("grpo", "bit", 0.1, 0.3, beta=0.01, kl="k3")
    assert [text(beta=0.2, text={"beta": beta}).beta for beta in (None, 0, 0.5)] == [0.2, 0, 0.5]


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (
            {"loss": "dppo_tv", "text": {"epsilon": 0.2}},
            "algorithm.text.epsilon has no use in dppo_tv, which takes delta",
        ),
        (
            {"loss": "cispo", "text": {"epsilon_high": 0.28}},
            "algorithm.text.epsilon_high is 0.28; for cispo it is the cap",
        ),
        ({"loss": "dppo_tv", "epsilon": 0.2}, "algorithm.epsilon has no use in dppo_tv"),
        ({"delta": 0.2}, "algorithm.delta has no use in grpo"),
    ],
)
def test_a_conflict_names_its_key(algorithm, message):
    with pytest.raises(UserError, match=f"^{message}"):
        text(**algorithm)
