import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rl.algorithm.advantages import compute_advantages

GOLDEN = Path(__file__).parents[1] / "golden" / "bsq8" / "grpo.safetensors"
NAN = math.nan


def advantages_of(rewards, weights=None, **settings) -> list[float]:
    rewards = torch.tensor(rewards, dtype=torch.float64)
    if rewards.ndim == 1:
        rewards = rewards[:, None]
    weights = [1.0] * rewards.shape[1] if weights is None else weights
    return compute_advantages(rewards, weights, **settings)[0].tolist()


def std(values) -> float:
    return float(np.std(np.asarray(values, dtype=np.float64), ddof=1))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_golden_vectors_of_the_reference(scale):
    golden = load_file(GOLDEN)
    found, _ = compute_advantages(golden["rewards"][:, None], [1.0], group_size=2, scale=scale)
    assert found.dtype == torch.float32
    assert torch.allclose(found, golden[f"advantages_{scale}"], rtol=0, atol=1e-6)


def test_grpo_is_the_weighted_sum_against_its_group():
    rewards = np.random.default_rng(0).normal(size=(6, 2))
    total = rewards @ [1.0, -0.5]
    expected = np.concatenate([(g - g.mean()) / (std(g) + 1e-4) for g in np.split(total, 2)])
    assert np.allclose(advantages_of(rewards, [1.0, -0.5], group_size=3), expected, atol=1e-12)
    centred = np.concatenate([g - g.mean() for g in np.split(total, 2)])
    by_batch = centred / (std(total) + 1e-4)
    assert np.allclose(advantages_of(rewards, [1.0, -0.5], group_size=3, scale="batch"), by_batch, atol=1e-12)
    assert np.allclose(advantages_of(rewards, [1.0, -0.5], group_size=3, scale="none"), centred, atol=1e-12)


def test_rloo_compares_with_the_others():
    found = advantages_of([1.0, 2.0, 6.0, 0.0, 4.0, 5.0], group_size=3, estimator="rloo", scale="none")
    expected = [1 - 8 / 2, 2 - 7 / 2, 6 - 3 / 2, 0 - 9 / 2, 4 - 5 / 2, 5 - 4 / 2]
    assert np.allclose(found, expected, atol=1e-12)
    scaled = advantages_of([1.0, 2.0, 6.0], group_size=3, estimator="rloo")
    assert np.allclose(scaled, np.array(expected[:3]) / (std([1, 2, 6]) + 1e-4), atol=1e-12)


def test_gdpo_normalises_each_reward_then_the_batch():
    rewards = np.random.default_rng(1).normal(size=(8, 2)) * [1.0, 100.0]
    groups = np.split(rewards, 2)
    normal = [(g - g.mean(0)) / (np.std(g, axis=0, ddof=1) + 1e-4) for g in groups]
    total = np.concatenate(normal) @ [1.0, 0.3]
    expected = (total - total.mean()) / (std(total) + 1e-4)
    assert np.allclose(advantages_of(rewards, [1.0, 0.3], group_size=4, estimator="gdpo"), expected, atol=1e-12)


def test_gdpo_keeps_apart_what_a_sum_confuses():
    """(1, 0) and (0, 1) have one sum; a reward that varies little is drowned in it, but not in GDPO."""
    rewards = [[0.0, 100.0], [0.0, 0.0], [0.1, 100.0], [0.1, 0.0]]
    summed = advantages_of(rewards, group_size=4)
    separate = advantages_of(rewards, group_size=4, estimator="gdpo")
    assert abs(summed[2] - summed[0]) < 0.01
    assert separate[2] - separate[0] > 0.5


def test_a_reward_that_applies_to_none_of_a_group_drops_out_of_it():
    rewards = [[1.0, NAN], [3.0, NAN], [1.0, 5.0], [3.0, 1.0]]
    found = advantages_of(rewards, [1.0, 2.0], group_size=2, scale="none")
    assert np.allclose(found, [-1, 1, 3, -3])  # sums 1, 3 and 11, 5: the first reward's weight stays 1


def test_a_sample_that_lacks_a_reward_counts_for_nothing():
    rewards = [[1.0, 0.2], [50.0, NAN], [3.0, 0.6], [NAN, 0.4]]
    for settings in ({}, {"scale": "batch"}, {"scale": "none"}, {"estimator": "rloo"}, {"estimator": "gdpo"}):
        found = advantages_of(rewards, group_size=4, **settings)
        assert found[1] == found[3] == 0
        alone = advantages_of([rewards[0], rewards[2]], group_size=2, **settings)
        assert np.allclose([found[0], found[2]], alone, atol=1e-12)
        assert found[0] < 0 < found[2]


def test_a_missing_reward_is_not_a_zero():
    """Failing must not be better than a punished score."""
    found = advantages_of([[-5.0], [NAN], [-3.0], [-4.0]], group_size=4)
    assert found[1] == 0
    assert found[2] > 0 > found[0]


def test_a_reward_of_weight_zero_only_measures():
    rewards = [[1.0, NAN], [3.0, 0.5]]
    found, metrics = compute_advantages(torch.tensor(rewards), [1.0, 0.0], group_size=2, scale="none")
    assert found.tolist() == [-1, 1]
    assert metrics["rewards/reward_1/mean"] == 0.5
    assert metrics["rewards/reward_1/missing"] == 1


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "gdpo"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_groups_without_a_comparison_give_zeros(estimator, scale):
    settings = {"estimator": estimator, "scale": scale}
    assert advantages_of([0.3, 0.8, 0.1], group_size=1, **settings) == [0, 0, 0]
    assert advantages_of([[NAN], [NAN], [1.0], [2.0]], group_size=2, **settings)[:2] == [0, 0]
    assert advantages_of([[NAN], [7.0], [1.0], [2.0]], group_size=2, **settings)[1] == pytest.approx(0, abs=1e-6)
    assert advantages_of([[NAN], [NAN]], group_size=2, **settings) == [0, 0]
    assert np.allclose(advantages_of([0.1] * 3, group_size=3, **settings), 0, atol=1e-8)


def test_metrics():
    rewards = torch.tensor(
        [[1.0, NAN], [1.0, NAN], [2.0, 0.5], [4.0, NAN], [2.0, 1.0], [3.0, 2.0], [NAN, NAN], [NAN, NAN]]
    )
    _, metrics = compute_advantages(rewards, torch.tensor([1.0, 2.0]), group_size=2, names=["ocr", "clip"])
    counted = [1.0, 1.0, 3.0, 4.0, 7.0]  # sample 3 lacks clip, the last group has nothing
    assert metrics == pytest.approx(
        {
            "reward": np.mean(counted),
            "reward_std": std(counted),
            "frac_reward_zero_std": 2 / 3,  # equal rewards, a single sample that counts, and one with signal
            "advantages/excluded_samples": 3,
            "rewards/ocr/mean": np.mean([1, 1, 2, 4, 2, 3]),
            "rewards/ocr/std": std([1, 1, 2, 4, 2, 3]),
            "rewards/ocr/missing": 2,
            "rewards/clip/mean": np.mean([0.5, 1.0, 2.0]),
            "rewards/clip/std": std([0.5, 1.0, 2.0]),
            "rewards/clip/missing": 5,
        }
    )


def test_metrics_without_a_value_are_left_out():
    found, metrics = compute_advantages(torch.full((2, 1), NAN), [1.0], group_size=2)
    assert found.tolist() == [0, 0]
    assert metrics == {"advantages/excluded_samples": 2, "rewards/reward_0/missing": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_size": 3}, "group_size 3 does not divide the 4 samples"),
        ({"weights": [1.0]}, "2 rewards came with 1 weights and 2 names"),
        ({"names": ["a"]}, "2 rewards came with 2 weights and 1 names"),
        ({"rewards": torch.zeros(4)}, r"rewards have shape \(4,\)"),
        ({"rewards": torch.tensor([[0, 0], [0, -math.inf]] * 2)}, "reward reward_1 of sample 1 is -inf"),
        ({"estimator": "ppo"}, "unknown advantage estimator 'ppo'"),
        ({"scale": "global"}, "unknown advantage scale 'global'"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    arguments = {"rewards": torch.zeros(4, 2), "weights": [1.0, 1.0], "group_size": 2} | change
    with pytest.raises(ValueError, match=message):
        compute_advantages(arguments.pop("rewards"), arguments.pop("weights"), **arguments)


def test_gdpo_by_batch_leaves_groups_without_the_reward_out_of_its_deviation():
    """A reward for some prompts only is normalised as if the others were not there, not as if they scored 0."""
    with_it = [[1.0, 0.2], [3.0, 0.9], [2.0, 0.1], [5.0, 0.4]]
    without = [[4.0, NAN], [1.0, NAN]] * 8
    rewards = np.array([row[0] for row in with_it + without])
    second = np.array([row[1] for row in with_it])

    def centred(values):
        return np.concatenate([group - group.mean() for group in np.split(values, len(values) // 2)])

    score = centred(rewards) / (std(rewards) + 1e-4)
    score[:4] += centred(second) / (std(second) + 1e-4)
    expected = (score - score.mean()) / (std(score) + 1e-4)
    found = advantages_of(with_it + without, group_size=2, estimator="gdpo", scale="batch")
    assert np.allclose(found, expected, atol=1e-12)
