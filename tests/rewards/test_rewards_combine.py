"""How rewards add up: clipping, normalisation, weights by task, from a recipe's entries to advantages and totals."""

import json
import math

import pytest
import torch
from PIL import Image
from support.training_runs import SMALL_DRAWING

from rewards import Reward, RewardBatch, RewardSpec, RewardSuite
from rl.algorithm.advantages import compute_advantages
from rl.config.recipe import recipe_from_mapping
from rl.data.prompts import PromptRecord
from rl.evaluation.evaluate import Evaluator, total_scores
from rl.scoring.scorer import LocalScorer, ScoredList
from rl.train import train
from uniar.errors import UserError

NAN = math.nan


class Given(Reward):
    """The metadata entry `value`, or the one that `key` names."""

    usual_range = (10.0, 30.0)

    def __init__(self, key: str = "value"):
        self.key = key

    def score(self, batch):
        return [row.get(self.key) for row in batch.metadata]


def batch_of(values, tasks=None, key="value"):
    images = [Image.new("RGB", (4, 4))] * len(values)
    return RewardBatch(["p"] * len(values), images, tasks, [{} if v is None else {key: v} for v in values])


def suite_of(**settings):
    return RewardSuite([RewardSpec(Given, name="given", **settings)])


@pytest.mark.parametrize(
    ("clip", "normalize", "expected"),
    [
        (None, None, [-5.0, 0.0, 20.0, 100.0, NAN]),
        ([0, 50], None, [0.0, 0.0, 20.0, 50.0, NAN]),
        ([None, 50], None, [-5.0, 0.0, 20.0, 50.0, NAN]),
        ([0, None], None, [0.0, 0.0, 20.0, 100.0, NAN]),
        (None, [10, 30], [-0.75, -0.5, 0.5, 4.5, NAN]),
        (None, True, [-0.75, -0.5, 0.5, 4.5, NAN]),
        ([10, 30], [10, 30], [0.0, 0.0, 0.5, 1.0, NAN]),
        ([0, 50], [0, 26], [0.0, 0.0, 20 / 26, 50 / 26, NAN]),
        (None, False, [-5.0, 0.0, 20.0, 100.0, NAN]),
    ],
)
def test_terms_are_clipped_then_normalised(clip, normalize, expected):
    suite = suite_of(clip=clip, normalize=normalize)
    table = suite.score(batch_of([-5, 0, 20, 100, None]))
    assert table.values[:4, 0].tolist() == [-5, 0, 20, 100]  # the table keeps what the reward said
    torch.testing.assert_close(
        suite.terms(table.values)[:, 0], torch.tensor(expected, dtype=torch.float64), equal_nan=True, rtol=1e-12, atol=0
    )


def test_each_reward_has_its_own_term():
    specs = [RewardSpec(Given, name="a", clip=[0, 1]), RewardSpec(Given, name="b", normalize=[0, 2])]
    values = torch.tensor([[3.0, 3.0], [NAN, 1.0]], dtype=torch.float64)
    terms = RewardSuite(specs).terms(values)
    torch.testing.assert_close(
        terms, torch.tensor([[1.0, 1.5], [NAN, 0.5]], dtype=torch.float64), equal_nan=True, rtol=0, atol=0
    )


def test_a_function_may_name_its_usual_range():
    def plain(prompts, images):
        return [5.0] * len(prompts)

    with pytest.raises(UserError, match="normalize of reward 'plain' is true, but it names no usual range"):
        RewardSuite([RewardSpec(plain, normalize=True)])
    plain.usual_range = (0.0, 10.0)
    suite = RewardSuite([RewardSpec(plain, normalize=True)])
    assert suite.terms(suite.score(batch_of([1, 1])).values).flatten().tolist() == [0.5, 0.5]


def test_weights_by_task_route_too():
    tasks = ["text", "count", "other", None]
    cases = [
        (2.0, None, [2.0] * 4, [True] * 4),
        (2.0, ["text"], [2.0, 0, 0, 0], [True, False, False, False]),
        ({"text": 2, "count": 0.5}, None, [2.0, 0.5, 0, 0], [True, True, False, False]),
        ({"text": 2, "default": -1}, None, [2.0, -1, -1, -1], [True] * 4),
        ({"text": 2, "default": 1}, ["text", "count"], [2.0, 1, 0, 0], [True, True, False, False]),
        ({"text": 0}, None, [0.0] * 4, [True, False, False, False]),
    ]
    for weight, only, weights, scored in cases:
        table = suite_of(weight=weight, tasks=only).score(batch_of([1, 2, 3, 4], tasks))
        assert table.weights[:, 0].tolist() == weights, weight
        assert (~table.values[:, 0].isnan()).tolist() == scored, weight


def test_tasks_named_by_weights_are_checked_against_the_prompts():
    suite = suite_of(weight={"txt": 1, "default": 2})
    with pytest.raises(UserError, match=r"'given' is for the task 'txt', which no prompt has.*Did you mean 'text'"):
        suite.check_tasks(["text", "count"])
    suite.check_tasks(["txt"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": {}}, "weight of reward 'color' is an empty mapping"),
        ({"weight": {"text": "big"}}, "weight of reward 'color' has the entry 'text': 'big'"),
        ({"weight": {3: 1}}, "weight of reward 'color' has the entry 3: 1"),
        ({"weight": {"text": NAN}}, "weight of reward 'color' has the entry 'text': nan"),
        ({"weight": [1]}, "reward 'color': weight is [1] (a list), expected a number or a mapping"),
        ({"weight": {"b": 1}, "tasks": ["a"]}, "names the task 'b', which is not among its tasks: a"),
        ({"weight": {"a": 1}, "tasks": ["a", "b"]}, "has no number for the task 'b', and no 'default'"),
        ({"clip": 3}, "reward 'color': clip is 3 (a whole number), expected a list of numbers or null"),
        ({"clip": [1]}, "clip of reward 'color' is [1.0]"),
        ({"clip": [None, None]}, "clip of reward 'color' is [None, None]"),
        ({"clip": [True, 2]}, "reward 'color': clip.0 is true, expected a number or null"),
        ({"clip": [2, 1]}, "clip of reward 'color' is [2.0, 1.0]; the first number must be the smaller one"),
        ({"normalize": [None, 2]}, "normalize of reward 'color' is [None, 2.0], two numbers [low, high] are needed"),
        ({"normalize": [1, 1]}, "normalize of reward 'color' is [1.0, 1.0]; the first number must be the smaller one"),
        ({"normalize": "yes"}, "reward 'color': normalize is 'yes' (a string), expected true or false, a list"),
        ({"normalize": 1}, "reward 'color': normalize is 1 (a whole number), expected true or false, a list"),
    ],
)
def test_what_is_not_valid_is_named(settings, message):
    with pytest.raises(UserError) as caught:
        RewardSuite.from_recipe([{"use": "color", "color": "red", **settings}])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_reward_that_names_a_usual_range_can_be_normalised():
    for name in ("clip_score", "pickscore", "hpsv2", "image_reward", "aesthetic", "vqa_score", "sharpness"):
        suite = RewardSuite.from_recipe([{"use": name, "normalize": True}])
        low, high = suite.rewards[0].usual_range
        assert suite.terms(torch.tensor([[low], [high]])).flatten().tolist() == pytest.approx([0, 1], abs=1e-6)
    scaled = RewardSuite.from_recipe([{"use": "clip_score", "scale": 100, "normalize": True}])
    assert scaled.terms(torch.tensor([[15.0], [40.0]])).flatten().tolist() == pytest.approx([0, 1])


# In advantages and totals


def test_advantages_with_weights_by_sample():
    """Groups of different tasks in one batch are as each alone with its own weights."""
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(8, 2, dtype=torch.float64, generator=generator)
    rewards[4:, 1] = NAN  # the second reward is not for the second task
    weights = torch.tensor([[1.0, 3.0]] * 4 + [[0.5, 0.0]] * 4, dtype=torch.float64)
    for estimator in ("grpo", "rloo"):
        together, _ = compute_advantages(rewards, weights, group_size=4, estimator=estimator)
        first, _ = compute_advantages(rewards[:4], [1.0, 3.0], group_size=4, estimator=estimator)
        second, _ = compute_advantages(rewards[4:], [0.5, 0.0], group_size=4, estimator=estimator)
        torch.testing.assert_close(together, torch.cat([first, second]), rtol=0, atol=1e-12)
    # gdpo by hand: each reward normalised in its group, weighted by the sample's weight, whitened over the batch.
    found, _ = compute_advantages(rewards, weights, group_size=4, estimator="gdpo")

    def normal(values):
        return (values - values.mean()) / (values.std() + 1e-4)

    score = torch.cat([normal(rewards[:4, 0]) + 3 * normal(rewards[:4, 1]), 0.5 * normal(rewards[4:, 0])])
    torch.testing.assert_close(found, normal(score), rtol=0, atol=1e-9)
    same, _ = compute_advantages(rewards[:4], weights[:4], group_size=4)
    plain, _ = compute_advantages(rewards[:4], [1.0, 3.0], group_size=4)
    assert torch.equal(same, plain)
    with pytest.raises(ValueError, match="2 rewards came with 3 weights"):
        compute_advantages(rewards, torch.ones(8, 3), group_size=4)


def test_metrics_speak_of_the_scores_and_the_sum_of_the_terms():
    values = torch.tensor([[20.0], [30.0]], dtype=torch.float64)
    _, metrics = compute_advantages(values / 10, [2.0], group_size=2, names=["r"], measured=values)
    assert metrics["rewards/r/mean"] == 25.0
    assert metrics["reward"] == 5.0


def test_totals_with_weights_by_sample():
    terms = torch.tensor([[1.0, 2.0], [1.0, NAN], [NAN, NAN]], dtype=torch.float64)
    totals = total_scores(terms, torch.tensor([[1.0, 10.0], [5.0, 0.0], [1.0, 1.0]], dtype=torch.float64))
    assert totals[:2].tolist() == [21.0, 5.0]
    assert math.isnan(totals[2])


def test_an_evaluation_combines_as_training_does(nano_model, nano_processor, nano_decoder):
    suite = RewardSuite.from_recipe(
        [
            {"use": "compressibility", "weight": {"a": 2, "b": 1}, "clip": [-2.5, None], "normalize": [-5, 0]},
            {"use": "color", "color": "red", "tasks": ["b"], "weight": 3},
        ]
    )
    records = [PromptRecord(f"prompt {n}", task="ab"[n % 2], id=str(n)) for n in range(4)]
    scorer = LocalScorer(nano_decoder, ScoredList(suite, SMALL_DRAWING), nano_processor)
    evaluation = Evaluator(records, nano_processor, scorer, SMALL_DRAWING).run(nano_model)
    for row in range(4):
        size, red = evaluation.values[row].tolist()
        assert size < 0
        expected = (max(size, -2.5) + 5) / 5 * (1 if row % 2 else 2)
        if row % 2:
            expected += 3 * red
        else:
            assert math.isnan(red)
        assert evaluation.totals[row].item() == pytest.approx(expected)


@pytest.fixture
def settings(nano_checkpoint, tmp_path):
    """A recipe of one update on two prompts of two tasks; tests choose the rewards."""
    lines = [{"prompt": "a red square", "task": "a"}, {"prompt": "a blue circle", "task": "b"}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "model": {"path": str(nano_checkpoint), "dtype": "float32"},
        "data": {"prompts": str(tmp_path / "prompts.jsonl")},
        "rollout": {"height": 64, "width": 64, "samples_per_prompt": 4, "guidance": "none", "guidance_scale": 1.0},
        "decode": {"num_inference_steps": 1, "batch_size": 8},
        "trainer": {"max_steps": 1, "per_device_train_batch_size": 8, "gradient_checkpointing": False},
        "output_dir": str(tmp_path / "run"),
    }


def test_training_counts_what_the_recipe_says(settings, tmp_path):
    (tmp_path / "letters.py").write_text("def letters(prompts, images):\n    return [len(p) for p in prompts]\n")
    letters = {"use": f"{tmp_path / 'letters.py'}:letters", "weight": {"a": 2, "b": 0.5}, "normalize": [10, 20]}
    folder = train(recipe_from_mapping({**settings, "rewards": [letters, {"use": "compressibility", "weight": 0}]}))
    [line] = [line for line in folder.read() if "reward" in line]
    assert line["rewards/letters/mean"] == 12.5  # 12 and 13 letters, as the reward gave them
    assert line["rewards/compressibility/mean"] < 0
    assert line["reward"] == pytest.approx((2 * 0.2 + 0.5 * 0.3) / 2)
