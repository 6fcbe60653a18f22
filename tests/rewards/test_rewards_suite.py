"""Rewards together: a table of scores, one per reward, and what happens when one fails or breaks the contract."""

import asyncio
import math
import threading
import time

import pytest
import torch
from PIL import Image
from support.numbered_batch import make_batch, red_channel

from rewards import Reward, RewardBatch, RewardError, RewardSpec, RewardSuite, RewardTable
from uniar.errors import UserError


class Numbered(Reward):
    """Scores the number that make_batch painted into the image; notes what it was given."""

    def __init__(self):
        self.seen, self.loads, self.devices = [], 0, []

    def load(self):
        self.loads += 1

    def to(self, device):
        self.devices.append(device)

    def score(self, batch):
        self.seen.append(list(batch.prompts))
        return [red_channel(image) for image in batch.images]


class FailsOn(Numbered):
    """Raises when one of the given prompts is in the batch, the first `times` times."""

    def __init__(self, *prompts, times=10**6):
        super().__init__()
        self.prompts, self.times = prompts, times

    def score(self, batch):
        scores = super().score(batch)
        if self.times > 0 and set(self.prompts) & set(batch.prompts):
            self.times -= 1
            raise ConnectionError("the judge hung up")
        return scores


def suite_of(*rewards, **settings):
    """A suite around ready-made rewards, which specs build from classes only."""
    suite = RewardSuite([RewardSpec(Numbered, name=f"r{index}", **settings) for index in range(len(rewards))])
    suite.rewards = rewards
    for name, reward in zip(suite.names, rewards, strict=True):
        reward.name = name
    return suite


def test_table_has_one_column_a_reward_with_nan_outside_its_tasks():
    everywhere, routed, elsewhere = Numbered(), Numbered(), Numbered()
    suite = suite_of(everywhere, routed, elsewhere)
    suite.specs = tuple(
        RewardSpec(Numbered, name=name, tasks=tasks)
        for name, tasks in zip(suite.names, (None, ("b", "c"), ("z",)), strict=True)
    )
    table = suite.score(make_batch(4, tasks=["a", "b", None, "c"]))
    nan = math.nan
    expected = torch.tensor([[0, nan, nan], [1, 1, nan], [2, nan, nan], [3, 3, nan]], dtype=torch.float64)
    torch.testing.assert_close(table.values, expected, equal_nan=True, rtol=0, atol=0)
    assert table.values.dtype == torch.float64
    assert routed.seen == [["prompt 1", "prompt 3"]]
    assert elsewhere.seen == []  # a reward with nothing to score is not called
    assert table.failures == {"r0": 0, "r1": 0, "r2": 0}
    assert table.column("r1")[1] == 1


def test_suite_keeps_names_and_weights_in_order():
    suite = RewardSuite.from_recipe([{"use": "compressibility", "weight": -2}, {"use": "color", "color": "red"}])
    assert suite.names == ("compressibility", "color")
    weights = suite.weights_for([None, "a"])
    assert weights.tolist() == [[-2.0, 1.0]] * 2
    assert weights.dtype == torch.float64
    assert [reward.name for reward in suite.rewards] == ["compressibility", "color"]


def test_weights_are_loaded_once_and_stay_where_they_are():
    first, second = Numbered(), Numbered()
    suite = suite_of(first, second)
    suite.score(make_batch(4))
    suite.score(make_batch(4))
    assert (first.loads, second.loads) == (1, 1)
    assert first.devices == second.devices == []


def test_offloaded_weights_are_on_the_device_only_while_something_is_scored(monkeypatch):
    """No GPU here: "meta" stands for it."""
    monkeypatch.setattr("rewards.suite.default_device", lambda: torch.device("meta"))
    gpu, cpu = torch.device("meta"), "cpu"

    class Fails(Numbered):
        def score(self, batch):
            raise ValueError("no")

    moved, kept, failing = Numbered(), Numbered(), Fails()
    suite = suite_of(moved, kept, failing)
    offload = (True, False, True)
    suite.specs = tuple(
        RewardSpec(Numbered, name=name, retries=0, offload=away)
        for name, away in zip(suite.names, offload, strict=True)
    )
    suite.load()
    assert moved.devices == [cpu]  # before it is loaded: its weights never see the GPU until they are needed
    with pytest.raises(RewardError, match="raised ValueError: no"):
        suite.score(make_batch(4))
    assert moved.devices == failing.devices == [cpu, gpu, cpu]
    with suite.on_device():
        assert moved.devices[3:] == [gpu]
        for _ in range(2):
            suite.score(make_batch(4), only=["r0", "r1"])
        assert moved.devices[3:] == [gpu]
    assert moved.devices[3:] == [gpu, cpu]
    assert kept.devices == []


def test_a_reward_that_does_not_load_stops_the_run_even_under_skip():
    class Broken(Numbered):
        def load(self):
            raise OSError("disk on fire")

    with pytest.raises(UserError, match=r"reward 'r0' does not load: OSError: disk on fire \(test_rewards_suite.py"):
        suite_of(Broken(), on_error="skip").score(make_batch(4))


def test_stop_names_reward_sample_prompt_and_cause():
    with pytest.raises(RewardError) as caught:
        suite_of(FailsOn("prompt 3"), tasks=["x"]).score(make_batch(4, tasks=["x", None, "x", "x"]))
    # Sample 3 of the batch is the third that the reward saw: the message speaks of the batch.
    error = caught.value
    assert (error.reward, error.index, error.prompt) == ("r0", 3, "prompt 3")
    assert isinstance(error, UserError)
    assert isinstance(error.__cause__, ConnectionError)
    assert str(error).startswith("reward 'r0' raised ConnectionError: the judge hung up (test_rewards_suite.py, line ")
    assert str(error).endswith("on sample 3 (prompt 'prompt 3')")


def test_a_failure_that_passes_is_retried_and_leaves_no_trace():
    reward = FailsOn("prompt 2", times=2)
    table = suite_of(reward, retries=2).score(make_batch(4))
    assert table.values.flatten().tolist() == [0, 1, 2, 3]
    assert table.failures == {"r0": 0}
    assert len(reward.seen) == 3


def test_skip_loses_only_the_samples_that_fail():
    reward = FailsOn("prompt 0", "prompt 2")
    table = suite_of(reward, on_error="skip", retries=1).score(make_batch(4))
    assert [math.isnan(value) for value in table.values[:, 0]] == [True, False, True, False]
    assert table.values[[1, 3], 0].tolist() == [1, 3]
    assert table.failures == {"r0": 2}
    assert len(reward.seen) == 2 + 4  # two attempts for the batch, then one for each sample: bounded


def test_a_reward_that_compares_samples_is_never_given_a_part_of_a_failed_batch():
    reward = FailsOn("prompt 2")
    reward.pointwise = False
    table = suite_of(reward, on_error="skip", retries=1).score(make_batch(4))
    assert table.values.isnan().all()
    assert table.failures == {"r0": 4}
    assert reward.seen == [[f"prompt {n}" for n in range(4)]] * 2
    with pytest.raises(RewardError, match="on a batch of 4 samples, the first of them sample 0") as caught:
        suite_of(reward).score(make_batch(4))
    assert caught.value.index is None


def test_a_batch_that_fails_though_each_sample_is_fine_stops_or_is_scored_alone():
    class TooLarge(Numbered):
        def score(self, batch):
            if len(batch) > 1:
                raise MemoryError("too large")
            return super().score(batch)

    table = suite_of(TooLarge(), on_error="skip").score(make_batch(4))
    assert table.values.flatten().tolist() == [0, 1, 2, 3]
    assert table.failures == {"r0": 0}
    with pytest.raises(RewardError, match=r"MemoryError: too large .*on a batch of 4 samples"):
        suite_of(TooLarge()).score(make_batch(4))


def test_skip_counts_bad_scores_and_never_makes_one_up():
    def some_bad(prompts, images):
        return [1.0, math.inf, "great", None]

    table = RewardSuite([RewardSpec(some_bad, on_error="skip")]).score(make_batch(4))
    assert table.values[0, 0] == 1
    assert table.values[1:, 0].isnan().all()
    assert table.failures == {"some_bad": 2}  # the None is not a failure

    def miscounting(prompts, images):
        return [1.0]

    table = RewardSuite([RewardSpec(miscounting, on_error="skip")]).score(make_batch(4))
    assert table.values.isnan().all()
    assert table.failures == {"miscounting": 4}


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([1.0], r"returned 1 score for 2 samples, on a batch of 2 samples, the first of them sample 0"),
        ([1.0, "a"], r"returned 'a' \(str\), a number or None is needed, on sample 1 \(prompt 'prompt 1'\)"),
        ([-math.inf, 1.0], r"returned -inf \(float\), a finite number or None is needed, on sample 0"),
        ([1.0, True], r"returned True \(bool\), a number or None is needed, on sample 1"),
    ],
)
def test_stop_on_a_broken_contract(result, message):
    def plugin(prompts, images):
        return result

    with pytest.raises(RewardError, match=f"reward 'plugin' {message}"):
        RewardSuite([RewardSpec(plugin)]).score(make_batch(2))


def test_messages_stay_one_line_and_short():
    def chatty(prompts, images):
        raise ValueError("first line\nsecond line" + "!" * 5000)

    batch = RewardBatch(["long " * 100], [Image.new("RGB", (1, 1))])
    with pytest.raises(RewardError) as caught:
        RewardSuite([RewardSpec(chatty)]).score(batch)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_async_rewards_run_beside_each_other_and_beside_the_rest():
    gate = threading.Barrier(3, timeout=10)  # passes only if all three are at it at once

    class Waiting(Reward):
        async def score(self, batch):
            await asyncio.to_thread(gate.wait)
            return [red_channel(image) for image in batch.images]

    def busy(prompts, images):
        gate.wait()
        return [0.5] * len(prompts)

    suite = RewardSuite([RewardSpec(Waiting, name="a"), RewardSpec(busy), RewardSpec(Waiting, name="b")])
    table = suite.score(make_batch(2))
    assert table.values.tolist() == [[0, 0.5, 0], [1, 0.5, 1]]
    suite.close()


def test_async_rewards_keep_one_event_loop_and_the_contract():
    loops = []

    async def remote(prompts, images):
        loops.append(asyncio.get_running_loop())
        if len(loops) > 2:
            raise ConnectionError("no answer")
        return [1.0] * len(prompts)

    suite = RewardSuite([RewardSpec(remote, retries=0)])
    suite.score(make_batch(1))
    suite.score(make_batch(1))
    with pytest.raises(
        RewardError, match=r"raised ConnectionError: no answer \(test_rewards_suite.py, line \d+\), on sample 0"
    ):
        suite.score(make_batch(1))
    assert len(set(loops)) == 1
    suite.close()
    assert loops[0].is_closed()


def test_a_score_that_forgot_its_async_is_an_error():
    async def later():
        return [1.0]

    def forgetful(prompts, images):
        return later()

    with pytest.raises(RewardError, match="returned a coroutine; a score that awaits is declared with 'async def'"):
        RewardSuite([RewardSpec(forgetful)]).score(make_batch(1))


def test_seconds_are_those_of_each_reward():
    def slow(prompts, images):
        time.sleep(0.05)
        return [0.0] * len(prompts)

    table = RewardSuite([RewardSpec(slow), RewardSpec("compressibility")]).score(make_batch(1))
    assert table.seconds["slow"] >= 0.05
    assert 0 < table.seconds["compressibility"] < table.seconds["slow"]


def test_tables_of_consecutive_batches_join():
    def odd(prompts, images):
        return [None if red_channel(image) % 2 else 1.0 if red_channel(image) else "bad" for image in images]

    suite = RewardSuite([RewardSpec(odd, on_error="skip")])
    batch = make_batch(4)
    whole, parts = suite.score(batch), [suite.score(batch.select([0, 1])), suite.score(batch.select([2, 3]))]
    joined = RewardTable.cat(parts)
    torch.testing.assert_close(joined.values, whole.values, equal_nan=True, rtol=0, atol=0)
    assert joined.failures == whole.failures == {"odd": 1}
    assert joined.seconds["odd"] == pytest.approx(sum(part.seconds["odd"] for part in parts))
    other = RewardSuite([RewardSpec("color", params={"color": "red"})]).score(batch)
    with pytest.raises(ValueError, match="different rewards"):
        RewardTable.cat([whole, other])


def test_an_empty_batch_gives_an_empty_table():
    assert RewardSuite([RewardSpec("compressibility")]).score(make_batch(0)).values.shape == (0, 1)


def test_a_task_that_no_prompt_has_is_found():
    suite = RewardSuite.from_recipe([{"use": "ocr", "tasks": ["txt"]}])
    with pytest.raises(UserError, match=r"'ocr' is for the task 'txt', which no prompt has.*Did you mean 'text'"):
        suite.check_tasks(["text", "count", "text"])
    suite.check_tasks(["txt"])
