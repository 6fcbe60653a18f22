"""Groups without variance are replaced: what is drawn, chosen, moved between ranks, and where a resumed run goes on."""

import math

import pytest
import torch
from support.training_runs import changed, deepspeed, launch, logged, run, small_recipe

from rl.algorithm.advantages import group_deviations
from rl.data.prompts import PromptRecord
from rl.policy.dynamic_sampling import plan_moves
from rl.policy.prompt_stream import PromptStream
from rl.trainer.trainer import UniARTrainer

# Red and green squares can be told apart by how red they are; all others score the same.
REWARD = """
def redness(prompts, images, **columns):
    reds = [sum(image.getdata(0)) / 255 / 64**2 for image in images]
    return [red if "red" in prompt or "green" in prompt else 0.5 for prompt, red in zip(prompts, reds)]

def same(prompts, images, **columns):
    return [0.5] * len(images)
"""


@pytest.fixture
def settings(nano_checkpoint, tmp_path) -> dict:
    """Three groups of four a rollout, of four prompts."""
    (tmp_path / "my_rewards.py").write_text(REWARD)
    return changed(
        small_recipe(nano_checkpoint, tmp_path),
        rewards=[{"use": f"{tmp_path}/my_rewards.py:redness"}],
        rollout={"dynamic_sampling": {"max_rounds": 6}, "guidance": "guided", "guidance_scale": 2.0},
        trainer={"per_device_train_batch_size": 12},
    )


@pytest.fixture
def trained_on(monkeypatch) -> list[torch.Tensor]:
    """The advantages of every micro-batch."""
    batches = []
    compute_loss = UniARTrainer._compute_loss

    def watched(self, model, inputs):
        batches.append(inputs["advantages"].cpu())
        return compute_loss(self, model, inputs)

    monkeypatch.setattr(UniARTrainer, "_compute_loss", watched)
    return batches


def test_only_groups_with_variance_are_trained_on(settings, trained_on):
    folder = run(settings)
    assert len(trained_on) == 3
    for advantages in trained_on:
        assert (advantages.abs() > 0.05).sum() > 8
        assert advantages.sum() == pytest.approx(0, abs=1e-4)
    dropped, refilled = (logged(folder, f"dynamic_sampling/{name}") for name in ("dropped", "refilled"))
    assert logged(folder, "dynamic_sampling/unfilled") == [0, 0, 0]
    assert all(count >= 1 for count in refilled)  # two of the four prompts have variance, and three are needed
    assert all(a >= b for a, b in zip(dropped, refilled, strict=True))
    # The metrics of rewards are those of all that was drawn first, good and bad.
    zero = logged(folder, "frac_reward_zero_std")
    assert zero == pytest.approx([count / 3 for count in refilled])
    assert max(logged(folder, "rollout/logp_difference")) < 1e-5


def test_the_cap(settings, tmp_path, trained_on):
    rewards = [{"use": f"{tmp_path}/my_rewards.py:same"}]
    folder = run(settings, rewards=rewards, rollout={"dynamic_sampling": {"max_rounds": 2}}, trainer={"max_steps": 2})
    assert logged(folder, "dynamic_sampling/rounds") == [3, 3]
    assert logged(folder, "dynamic_sampling/unfilled") == [3, 3]
    assert logged(folder, "dynamic_sampling/dropped") == [6, 6]
    assert all(len(advantages) == 12 and not advantages.any() for advantages in trained_on)


def test_nothing_is_replaced_where_all_differ(settings):
    """The same prompts, samples and rewards as without dynamic sampling, in the first epoch."""
    rewards = [{"use": "color", "color": "red", "softness": 0.6, "tolerance": 0.2}]
    sections = {"rewards": rewards, "trainer": {"max_steps": 1, "save_strategy": "no"}}
    folder = run(settings, **sections)
    plain = run(settings, **sections, rollout={"dynamic_sampling": None}, output_dir=f"{folder.path}-plain")
    assert logged(folder, "dynamic_sampling/rounds") == [1]
    for key in ("reward", "loss", "grad_norm", "entropy"):
        assert logged(folder, key) == logged(plain, key), key


def test_resumed_run_goes_on_with_the_next_prompt(settings, tmp_path):
    trainer = {"max_steps": 4, "save_steps": 2}
    whole = run(settings, trainer=trainer, output_dir=str(tmp_path / "whole"))
    run(settings, trainer={**trainer, "max_steps": 2}, output_dir=str(tmp_path / "parts"))
    parts = run(settings, resume=True, trainer=trainer, output_dir=str(tmp_path / "parts"))
    for key in ("reward", "dynamic_sampling/dropped", "dynamic_sampling/rounds", "loss", "grad_norm"):
        assert logged(parts, key) == logged(whole, key), key


def test_stream_goes_round_and_tells_the_groups_of_a_step_apart():
    records = [PromptRecord(str(number), id=str(number)) for number in range(3)]
    stream = PromptStream(records, 2, shuffle=True, seed=5)
    first = stream.take(3, step=7)
    assert sorted(group[0].record.id for group in first) == ["0", "1", "2"]
    again = stream.take(3, step=7)
    assert sorted(group[0].record.id for group in again) == ["0", "1", "2"]
    assert [[sample.index for sample in group] for group in first + again] == [[0, 1]] * 3 + [[2, 3]] * 3
    later = PromptStream(records, 2, shuffle=True, seed=5)
    later.set_state(stream.state())
    assert later.take(2, step=8) == stream.take(2, step=8)
    assert PromptStream(records, 2, shuffle=False, seed=5).take(1, step=0)[0][0].record.id == "0"


def test_as_few_samples_as_possible_are_moved():
    assert plan_moves([0, 0, 1, 1], 2) == {}
    assert plan_moves([0, 0, 0, 1], 2) == {2: 1}
    assert plan_moves([2, 2, 2, 2, 0, 1], 3) == {2: 0, 3: 1}
    assert plan_moves([1, 1, 1, 1], 2) == {2: 0, 3: 0}


def test_deviations_of_groups():
    rewards = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5], [0.5, 0.5], [0.2, math.nan], [0.4, math.nan]])
    assert group_deviations(rewards, [1.0, 1.0], group_size=2).tolist() == pytest.approx([0, 0, 0.02**0.5])
    by_reward = group_deviations(rewards, [1.0, 3.0], group_size=2, estimator="gdpo")
    assert by_reward.tolist() == pytest.approx([3 * 0.5**0.5, 0, 0.02**0.5])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3"])
def test_two_processes_choose_what_one_does(settings, tmp_path, engine):
    """Six samples per rank: the second group stands on both."""
    trainer = {"max_steps": 4, "save_steps": 2}
    one = run(settings, trainer=trainer, output_dir=str(tmp_path / "one"))
    trainer |= {"per_device_train_batch_size": 6} | ({} if engine == "ddp" else {"deepspeed": deepspeed(engine)})
    two, _ = launch(settings, 2, trainer=trainer, output_dir=str(tmp_path / "two"))
    for name in ("rounds", "dropped", "refilled", "unfilled"):
        key = f"dynamic_sampling/{name}"
        assert logged(two, key) == logged(one, key), key
    assert logged(two, "reward") == pytest.approx(logged(one, "reward"), abs=1e-6)
    for key in ("kl", "entropy", "grad_norm"):
        assert logged(two, key) == pytest.approx(logged(one, key), rel=1e-3, abs=1e-6), key
    assert max(logged(two, "rollout/logp_difference")) < 1e-5
    (two.path / "checkpoint-4" / "manifest.json").unlink()
    losses = logged(two, "loss")
    resumed, _ = launch(settings, 2, "--resume", trainer=trainer, output_dir=str(tmp_path / "two"))
    assert logged(resumed, "loss") == losses
