"""Runs that go wrong stop, skip the update, or warn, as the recipe says; the bad batch is kept."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import training_runs
from support.spoiled_losses import not_a_number, spoil_losses
from support.training_runs import changed, deepspeed, launch, logged, small_recipe, weights

from rl.algorithm.guidance import Gaps
from rl.cli import main
from rl.policy import replay as policy
from rl.run.folder import RunFolder
from rl.trainer.step1_check import RolloutMismatch
from uniar.errors import RunError, UserError


@pytest.fixture
def settings(nano_checkpoint: Path, tmp_path: Path) -> dict:
    return changed(small_recipe(nano_checkpoint, tmp_path), trainer={"save_strategy": "no"})


def run(settings: dict, **watch) -> RunFolder:
    return training_runs.run(settings, watch=watch)


@pytest.fixture
def broken_second_update(monkeypatch):
    """The loss of the second update is NaN."""
    spoil_losses(monkeypatch, lambda trainer: trainer.state.global_step == 1, not_a_number)


def test_a_loss_that_is_nan_stops_the_run(settings, broken_second_update):
    with pytest.raises(RunError, match="update 2: the loss is nan; its batch is in"):
        run(settings)
    (saved,) = Path(settings["output_dir"]).glob("bad_batches/*.safetensors")
    assert load_file(saved)["picture-0.bits"].shape[0] == 8


def test_its_update_can_be_skipped(settings, broken_second_update, caplog):
    with caplog.at_level(logging.WARNING):
        folder = run(settings, nonfinite="skip")
    assert "update 2: the loss is nan" in caplog.text
    assert "the update is skipped" in caplog.text
    assert "a gradient" not in caplog.text  # said once
    trained = weights(folder.final)
    assert all(bool(torch.isfinite(t).all()) for t in trained.values() if t.is_floating_point())
    assert len(logged(folder, "reward")) == 3


def test_or_only_warned_of(settings, broken_second_update, caplog):
    with caplog.at_level(logging.WARNING):
        folder = run(settings, nonfinite="warn")
    assert "made all the same" in caplog.text
    assert bool(weights(folder.final)["output_layer_vistok.1.weight"].isnan().any())


def test_a_gradient_that_is_not_finite(settings, monkeypatch, caplog):
    def spoil(gaps):
        gaps.cond.register_hook(lambda gradient: gradient * float("inf"))
        return gaps

    spoil_losses(monkeypatch, lambda trainer: trainer.state.global_step == 1, spoil)
    settings["trainer"] |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    with pytest.raises(RunError, match="update 2: a gradient is not finite; its batch is in"):
        run(settings)
    saved = sorted(file.name for file in Path(settings["output_dir"]).glob("bad_batches/*"))
    assert saved == [f"step-000002-rank-0-{number}.safetensors" for number in range(2)]
    settings["output_dir"] += "-skipped"
    with caplog.at_level(logging.WARNING):
        run(settings, nonfinite="skip")
    assert "the update is skipped" in caplog.text


def require_one_update(folder: RunFolder, settings: dict) -> None:
    """The weights of `folder` are those after the first of its updates."""
    once = training_runs.run(settings, trainer={"max_steps": 1}, output_dir=f"{settings['output_dir']}-once")
    expected, found = weights(once.final), weights(folder.final)
    assert all(torch.allclose(expected[name], found[name], atol=1e-4) for name in expected)


def test_updates_past_a_limit_can_be_skipped(settings, caplog):
    """The first update starts at the reference; what comes after is past the limit, and changes nothing."""
    with caplog.at_level(logging.WARNING):
        folder = run(settings, kl_limit=1e-9, action="skip")
    assert "update 3: kl is " in caplog.text
    assert caplog.text.count("the update is skipped") == 2
    assert caplog.text.count("its batch is in") == 1
    require_one_update(folder, settings)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_deepspeed_skips_updates(settings, engine):
    trainer = {"deepspeed": deepspeed(engine)}
    folder, said = launch(settings, 1, watch={"kl_limit": 1e-9, "action": "skip"}, trainer=trainer)
    assert said.count("the update is skipped") == 2
    assert len(logged(folder, "reward")) == 3
    require_one_update(folder, settings)


@pytest.fixture
def replayed_otherwise(monkeypatch):
    """The replay's gaps are a tenth too large. Rounding alone is no fault: on some CPUs there is none."""
    sound = policy.replay

    def replay(*given) -> Gaps:
        gaps = sound(*given)
        return Gaps(1.1 * gaps.cond, gaps.uncond)

    monkeypatch.setattr("rl.policy.turns.replay", replay)


def test_a_policy_that_is_not_the_one_that_drew(settings, replayed_otherwise, caplog):
    settings["trainer"] |= {"max_steps": 1}
    with pytest.raises(RolloutMismatch, match=r"wrong importance ratios; its batch is in .*/bad_batches\."):
        run(settings)
    settings["output_dir"] += "-warn"
    with caplog.at_level(logging.WARNING):
        run(settings, step1="warn")
    assert caplog.text.count("the replayed policy differs from the one that drew") == 1


# Bounds of skipping --------------------------------------------------------------------------------------------------


@pytest.fixture
def broken_updates(monkeypatch):
    """`broken_updates(numbers)`: from now on the loss of these updates, counted from 1, is NaN."""
    return lambda numbers: spoil_losses(
        monkeypatch, lambda trainer: trainer.state.global_step + 1 in numbers, not_a_number
    )


def test_skipping_has_a_bound(settings, broken_updates, caplog):
    broken_updates(range(2, 100))
    settings["trainer"] |= {"max_steps": 8}
    with pytest.raises(RunError, match=r"update 4: 3 updates in a row were skipped \(watch.skip_limit is 3\)"):
        run(settings, nonfinite="skip", skip_limit=3)
    assert not (Path(settings["output_dir"]) / "final").exists()
    assert caplog.text.count("the loss is nan") == 3
    saved = [file.name for file in Path(settings["output_dir"]).glob("bad_batches/*")]
    assert saved == ["step-000002-rank-0-0.safetensors"]  # the first one tells as much as the others


def test_updates_between_skipped_ones_are_made(settings, broken_updates, caplog):
    broken_updates({1, 2, 4, 5})
    settings["trainer"] |= {"max_steps": 6}
    folder = run(settings, nonfinite="skip", skip_limit=3)
    assert caplog.text.count("the update is skipped") == 4
    assert len(list(folder.path.glob("bad_batches/*"))) == 1
    before, after = weights(Path(settings["model"]["path"])), weights(folder.final)
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("why", ["loss", "step1"])
def test_a_run_that_made_no_update_exports_nothing(settings, broken_updates, tmp_path, capsys, request, why):
    settings["trainer"] |= {"max_steps": 1}
    if why == "step1":
        request.getfixturevalue("replayed_otherwise")
        settings |= {"watch": {"step1": "skip"}}
    else:
        broken_updates(range(100))
        settings |= {"watch": {"nonfinite": "skip"}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(settings))
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 1
    assert "all 1 updates were skipped, so nothing was learnt and no model is exported" in capsys.readouterr().err
    assert not (Path(settings["output_dir"]) / "final").exists()


def test_skipped_updates_are_counted_on_after_a_resume(settings, broken_updates):
    broken_updates(range(1, 100))
    settings["resume"] = "auto"
    settings["trainer"] |= {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    with pytest.raises(RunError, match="all 2 updates were skipped"):
        run(settings, nonfinite="skip", skip_limit=3)
    settings["trainer"] |= {"max_steps": 8}
    with pytest.raises(RunError, match="update 3: 3 updates in a row were skipped"):
        run(settings, nonfinite="skip", skip_limit=3)
    saved = [file.name for file in Path(settings["output_dir"]).glob("bad_batches/*")]
    assert saved == ["step-000001-rank-0-0.safetensors"]


ONE_RANK = """
import sys
from rl.train import main
from rl.trainer.step import Step
from rl.policy.turns import Pictures

sound, replay = Step.loss, Pictures.replay

def broken(*given):
    gaps = replay(*given)
    return gaps._replace(cond=gaps.cond * float("nan"))

def loss(self, model, batch):
    on_it = self.processes.process_index == 1 and self.trainer.state.global_step > 0
    Pictures.replay = broken if on_it else replay
    try:
        return sound(self, model, batch)
    finally:
        Pictures.replay = replay

Step.loss = loss
sys.exit(main())
"""


def test_processes_stop_together_where_one_has_no_loss(settings, tmp_path):
    (tmp_path / "one_rank.py").write_text(ONE_RANK)
    trainer = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 8}
    watch = {"nonfinite": "skip", "skip_limit": 2}
    folder, said = launch(
        settings, 2, fails=True, program=[str(tmp_path / "one_rank.py")], trainer=trainer, watch=watch
    )
    assert said.count("update 3: 2 updates in a row were skipped") == 2  # each process says it
    assert "has ended, so rank" not in said
    assert len(logged(folder, "reward")) == 2
    assert not folder.final.exists()
    saved = sorted(file.name for file in folder.path.glob("bad_batches/*"))
    assert saved == [f"step-000002-rank-1-{number}.safetensors" for number in range(2)]


def test_rewards_that_never_differ(settings, tmp_path, caplog):
    (tmp_path / "flat.py").write_text("def flat(prompts, images, **_): return [1.0] * len(prompts)\n")
    settings["rewards"] = [{"use": f"{tmp_path}/flat.py:flat"}]
    with pytest.raises(RunError, match="no group's rewards have differed for 2 updates"):
        run(settings, no_variance_steps=2)
    settings["output_dir"] += "-warned"
    with caplog.at_level(logging.WARNING):
        run(settings, no_variance_steps=2, action="warn")
    assert "for 3 updates" in caplog.text


def test_rewards_that_apply_to_nothing_do_not_differ(settings):
    settings["rewards"] = [{"use": "color"}]  # of a colour that no prompt's metadata names
    with pytest.raises(RunError, match="no group's rewards have differed for 1 updates"):
        run(settings, no_variance_steps=1)


def test_rewards_that_apply_to_no_prompt_end_the_run_soon(settings, caplog):
    settings["rewards"] = [{"use": "color"}]
    settings["trainer"] |= {"max_steps": 5}
    with pytest.raises(
        UserError, match=r"update 3: no sample has a score; color applied to no prompt so far\. Give the"
    ):
        run(settings)
    assert caplog.text.count("update 1: no sample has a score") == 1


def test_a_rollout_without_a_score_among_others_is_none_to_end_a_run(settings, tmp_path):
    (tmp_path / "rare.py").write_text(
        "seen = []\n\ndef rare(prompts, images, **_):\n    seen.append(1)\n"
        "    return [0.5 if len(seen) == 1 else None for _ in prompts]\n"
    )
    settings["rewards"] = [{"use": f"{tmp_path}/rare.py:rare"}]
    settings["trainer"] |= {"max_steps": 5}
    assert run(settings).read()[-1]["step"] == 5


def test_updates_without_variance_are_counted_on_after_a_resume(settings, tmp_path):
    (tmp_path / "flat.py").write_text("def flat(prompts, images, **_): return [1.0] * len(prompts)\n")
    settings |= {"rewards": [{"use": f"{tmp_path}/flat.py:flat"}], "resume": "auto"}
    settings["trainer"] |= {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    assert run(settings, no_variance_steps=3) is not None
    settings["trainer"] |= {"max_steps": 4}
    with pytest.raises(RunError, match="update 3: no group's rewards have differed for 3 updates"):
        run(settings, no_variance_steps=3)


def test_several_updates_of_a_rollout_count_as_such(settings, tmp_path):
    (tmp_path / "flat.py").write_text("def flat(prompts, images, **_): return [1.0] * len(prompts)\n")
    settings |= {"rewards": [{"use": f"{tmp_path}/flat.py:flat"}], "algorithm": {"num_iterations": 2}}
    settings["trainer"] |= {"max_steps": 4}
    with pytest.raises(RunError, match="update 3: no group's rewards have differed for 3 updates"):
        run(settings, no_variance_steps=3)


@pytest.mark.parametrize(
    ("limit", "words"),
    [({"kl_limit": 1e-9}, "kl is .* past watch.kl_limit"), ({"entropy_limit": 0.69}, "past watch.entropy_limit 0.69")],
)
def test_limits(settings, limit, words):
    with pytest.raises(RunError, match=words):
        run(settings, **limit)


def test_a_sound_run_is_left_alone(settings, caplog):
    with caplog.at_level(logging.WARNING):
        run(settings, no_variance_steps=1, kl_limit=10, entropy_limit=1e-6)
    assert "update" not in caplog.text
    assert not (Path(settings["output_dir"]) / "bad_batches").exists()


def test_a_limit_of_what_is_not_measured_is_refused(settings):
    settings["algorithm"] = {"beta": 0}
    with pytest.raises(UserError, match=r"watch.kl_limit needs a reference to measure from; algorithm.beta is 0"):
        run(settings, kl_limit=1)
