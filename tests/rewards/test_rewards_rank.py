"""`rank`: another reward's scores as ranks, against scipy's; what it takes over of the other, and what it refuses."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import rankdata
from support.numbered_batch import make_batch

from rewards import Reward, RewardBatch, RewardError, RewardSpec, RewardSuite
from rl.config.recipe import recipe_from_mapping
from rl.plan.reward_sizes import RewardSizes
from uniar.errors import UserError

PLUGIN = """
def given(prompts, images, value):
    return [{"score": one, "why": f"says {one}"} if isinstance(one, float) else one for one in value]

def picky(prompts, images, value):
    if "bad" in value:
        raise ValueError("no such value")
    return value

async def later(prompts, images, value):
    return list(value)
"""


def batch_of(values, prompts=None):
    batch = make_batch(len(values))
    return RewardBatch(prompts or ["p"] * len(values), batch.images, metadata=[{"value": value} for value in values])


def suite_of(folder, name="given", **options):
    (folder / "plugin.py").write_text(PLUGIN)
    return RewardSuite.from_recipe([{"use": "rank", "reward": {"use": f"{folder}/plugin.py:{name}"}, **options}])


@pytest.mark.parametrize("name", ["given", "later"])
def test_ranks_are_averaged_over_ties_and_scaled(tmp_path, name):
    generator = np.random.default_rng(0)
    for count in (2, 3, 7, 16):
        values = generator.integers(-3, 4, count).astype(float)
        table = suite_of(tmp_path, name).score(batch_of(values.tolist()))
        expected = (rankdata(values, method="average") - 1) / (count - 1)
        assert table.values[:, 0].tolist() == pytest.approx(expected.tolist())
        assert [said["measured"] for said in table.details["rank"]] == values.tolist()
    assert name == "later" or table.details["rank"][0]["why"] == f"says {values[0]}"


def test_each_prompt_by_itself_and_only_what_has_a_score(tmp_path):
    values, prompts = [1.0, 5.0, None, 2.0, 9.0, 4.0, float("nan")], ["a", "b", "a", "a", "c", "b", "b"]
    table = suite_of(tmp_path).score(batch_of(values, prompts))
    assert table.values[:, 0].nan_to_num(-1).tolist() == [0, 1, -1, 1, -1, 0, -1]
    assert not table.failed.any()
    assert table.values.dtype == torch.float64


def test_a_score_that_is_none_fails_that_sample(tmp_path):
    values = [1.0, "good", 3.0, 2.0]
    table = suite_of(tmp_path, on_error="skip").score(batch_of(values))
    assert table.failed[:, 0].tolist() == [False, True, False, False]
    assert table.values[[0, 2, 3], 0].tolist() == [0.0, 1.0, 0.5]
    with pytest.raises(RewardError, match=r"reward 'rank' failed: given returned 'good' \(str\).* on sample 1"):
        suite_of(tmp_path).score(batch_of(values))


def test_a_sample_on_which_the_other_raises_does_not_cost_the_others_theirs(tmp_path):
    table = suite_of(tmp_path, "picky", on_error="skip").score(batch_of([3.0, "bad", 1.0, 2.0]))
    assert table.failed[:, 0].tolist() == [False, True, False, False]
    assert table.values[[0, 2, 3], 0].tolist() == [1.0, 0.0, 0.5]
    with pytest.raises(RewardError, match="reward 'rank' failed: picky raised ValueError: no such value"):
        suite_of(tmp_path, "picky").score(batch_of([3.0, "bad"]))


def test_it_is_loaded_bound_moved_and_closed_as_the_other(tmp_path):
    done = []

    class Other(Reward):
        wants_policy, needs_image, overlaps_decoding = True, False, False

        def __init__(self, size: int = 1):
            self.size = size

        def check_sample(self, prompt, metadata):
            if "bad" in metadata:
                raise UserError("it is bad.")

        def load(self):
            done.append("load")

        def to(self, device):
            done.append(device)

        def bind(self, policy, processor):
            done.append(policy)

        def close(self):
            done.append("close")

        def score(self, batch):
            return [self.size * len(texts) for texts in batch.texts]

    from rewards import register_reward
    from rewards.contract import registry

    register_reward("other")(Other)
    try:
        suite = RewardSuite([RewardSpec("rank", params={"reward": {"use": "other", "size": 2}})])
        suite.load()
        with suite.bound(nullcontext("policy"), None):
            table = suite.score(RewardBatch(["p"] * 3, [None] * 3, texts=[["a"], [], ["a", "b"]]))
        suite.rewards[0].to("cpu")
        suite.close()
        with pytest.raises(UserError, match=r"line 1: reward 'rank': it is bad"):
            suite.check_samples([("line 1", "p", None, {"bad": 1})])
    finally:
        del registry._registered["other"]
    assert table.values[:, 0].tolist() == [0.5, 0.0, 1.0]
    assert done == ["load", "policy", None, "cpu", "close"]
    assert suite.rewards[0].wants_policy
    assert not suite.rewards[0].pointwise


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        ({"use": "colour"}, "rewards: reward 'rank': reward 'colour': there is no reward 'colour'"),
        (
            {"use": "color", "weight": 2},
            "weight stands within the reward of 'rank'; it belongs to the entry around it.",
        ),
        ({"use": "color", "colr": "red"}, "reward 'rank': reward 'color': unknown parameter 'colr'"),
        ({"color": "red"}, "the key 'use' is missing in"),
        (3, "3 is not a reward; a mapping with the key 'use' is needed."),
    ],
)
def test_what_cannot_work_is_said(reward, words):
    with pytest.raises(UserError) as error:
        RewardSuite.from_recipe([{"use": "rank", "reward": reward}])
    assert words in str(error.value)
    with pytest.raises(UserError, match="parameter 'reward' is missing"):
        RewardSuite.from_recipe(["rank"])


def test_a_bare_name_is_short_for_an_entry():
    images = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    images.append(Image.effect_noise((32, 32), 90).convert("RGB"))
    table = RewardSuite.from_recipe([{"use": "rank", "reward": "compressibility"}]).score(
        RewardBatch(["p"] * 3, images)
    )
    assert table.values[2, 0] == 0
    assert table.values[:, 0].sum() == 1.5


def test_a_missing_column_is_found_before_a_run(tmp_path):
    with pytest.raises(UserError, match="reward 'rank': the function takes the column 'value', which no prompt has"):
        suite_of(tmp_path).check_columns([None], [{"other": 1}])


def test_a_plan_counts_the_model_within():
    clip = {"use": "clip_score", "model": "ViT-B-32", "weights": "openai"}
    needed = {"model": {"path": "-"}, "data": {"prompts": "-"}}
    alone, ranked, on_cpu = (
        RewardSizes.of(recipe_from_mapping({**needed, "rewards": [entry]}))
        for entry in (clip, {"use": "rank", "reward": clip}, {"use": "rank", "reward": {**clip, "device": "cpu"}})
    )
    assert ranked.always == alone.always > 10**8
    assert on_cpu.always == 0
