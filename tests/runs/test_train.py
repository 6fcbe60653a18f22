"""Whole training runs on a small random checkpoint: what is drawn, learnt, resumed, written."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.training_runs import COLOURS, changed, logged, run, small_recipe, weights

from rl.algorithm.guidance import GuidanceSettings
from rl.algorithm.losses import LossInputs, policy_loss
from rl.checkpoint.folders import newest_good
from rl.cli import main
from rl.config.recipe import recipe_from_mapping
from rl.data.prompts import load_prompts
from rl.policy.turns import Pictures
from rl.trainer.step1_check import RolloutMismatch
from rl.trainer.turn_loss import TurnLoss
from uniar.modeling_uniar import UniARForConditionalGeneration

GUIDED = GuidanceSettings("guided", 2.0, 1.0)


@pytest.fixture
def settings(nano_checkpoint: Path, tmp_path: Path) -> dict:
    """A recipe of three updates; tests change what they are about."""
    lines = [json.dumps({"prompt": f"a {colour} circle", "task": "color"}) for colour in COLOURS]
    (tmp_path / "held_out.jsonl").write_text("\n".join(lines) + "\n")
    return changed(
        small_recipe(nano_checkpoint, tmp_path),
        rollout={"guidance": "guided", "guidance_scale": 2.0},
        decode={"num_inference_steps": 2},
        evaluate={"prompts": str(tmp_path / "held_out.jsonl"), "guidance_scale": 2.0, "at_end": True},
        trainer={"lr_scheduler_type": "linear"},
    )


def test_a_run_leaves_what_it_says(settings, whole_plots):
    folder = run(settings, evaluate={"at_start": True, "every": 2})
    assert len(logged(folder, "reward")) == 3
    assert len(logged(folder, "eval_reward")) == 3
    assert set(folder.evaluated_totals()) == {0, 2, 3}
    for name in ("kl", "entropy", "rollout/logp_difference", "seconds/rollout", "seconds/decode", "seconds/update"):
        assert len(logged(folder, name)) == 3, name
    assert max(logged(folder, "rollout/logp_difference")) < 1e-5
    assert logged(folder, "kl")[0] == 0
    assert logged(folder, "kl")[-1] > 0
    for picture in (folder.plot, folder.samples / "step-000000.png", folder.samples / "step-000003.png"):
        with Image.open(picture) as image:
            assert image.size[0] > 100
    assert recipe_from_mapping(json.loads(json.dumps(_yaml(folder.config)))).trainer["max_steps"] == 3
    loaded = UniARForConditionalGeneration.from_pretrained(folder.final)
    assert loaded.dtype == torch.float32


def test_what_is_trained_and_what_stays(settings, nano_checkpoint):
    before, after = weights(nano_checkpoint), weights(run(settings).final)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    frozen = ("model.visual.", "lm_head.", "model.language_model.norm.")
    assert not {name for name in changed if name.startswith(frozen)}
    for part in (
        "model.language_model.layers.0.",
        "model.language_model.embed_tokens.",
        "visual_decoder.0.",
        "output_layer_vistok.",
    ):
        assert any(name.startswith(part) for name in changed), part


def test_reward_rises(settings):
    folder = run(
        settings, trainer={"max_steps": 20, "save_strategy": "no"}, evaluate={"at_start": True, "temperature": 1.0}
    )
    totals = folder.evaluated_totals()
    assert totals[20].mean() > totals[0].mean() + 0.1


SEVERAL_UPDATES = {"algorithm": {"num_iterations": 2}}
"""a rollout is split at random into micro-batches, so the random state counts"""


@pytest.mark.parametrize(
    "sections",
    [{}, {"model": {"lora": {"r": 4}}}, SEVERAL_UPDATES],
    ids=["full", "lora", "several updates per rollout"],
)
def test_resumed_run_is_the_uninterrupted_one(settings, tmp_path, caplog, sections):
    # An epoch is two updates: the checkpoint stands in the middle of the second.
    trainer = {"max_steps": 4, "save_steps": 3, "lr_scheduler_type": "constant"}
    if sections is SEVERAL_UPDATES:
        trainer |= {"max_steps": 8, "save_steps": 4, "steps_per_generation": 2, "per_device_train_batch_size": 4}
    whole = run(settings, trainer=trainer, output_dir=str(tmp_path / "whole"), **sections)
    half = trainer["save_steps"]
    first = run(settings, trainer={**trainer, "max_steps": half}, output_dir=str(tmp_path / "parts"), **sections)
    assert newest_good(first.path).name == f"checkpoint-{half}"
    damaged = shutil.copytree(first.path / f"checkpoint-{half}", first.path / f"checkpoint-{half + 1}")
    (damaged / "scheduler.pt").write_bytes(b"cut short")
    second = run(settings, resume=True, trainer=trainer, output_dir=str(tmp_path / "parts"), **sections)
    for key in ("reward", "loss", "kl", "grad_norm"):
        assert logged(whole, key) == logged(second, key), key
    assert f"checkpoint-{half + 1} is passed over: scheduler.pt has 9 bytes instead of" in caplog.text
    expected, found = weights(whole.final), weights(second.final)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("guidance", ["none", "guided_detach", "conditional"])
def test_every_guidance_convention_trains(settings, guidance):
    scale = 1.0 if guidance == "none" else 2.0
    folder = run(settings, rollout={"guidance": guidance, "guidance_scale": scale})
    assert max(logged(folder, "rollout/logp_difference")) < 1e-5
    assert all(value > 0 for value in logged(folder, "grad_norm"))
    assert bool(logged(folder, "guidance/mismatch")) == (guidance == "conditional")


@pytest.mark.parametrize(
    "algorithm",
    [
        {"loss": "dr_grpo", "kl": "k3"},
        {"loss": "dapo", "epsilon_high": 0.28, "advantage": {"estimator": "rloo", "scale": "none"}},
        {"loss": "gspo", "kl": "k1"},
        {"loss": "cispo", "ratio_level": "visual_token", "advantage": {"estimator": "gdpo"}},
        {"loss": "dppo_tv", "delta": 0.1, "entropy_coef": 0.01},
        {"loss": "grpo", "old_logp": "rollout", "kl": "k2"},
    ],
    ids=lambda algorithm: algorithm["loss"] + algorithm.get("old_logp", ""),
)
def test_every_loss_trains_with_several_updates_a_rollout(settings, algorithm):
    folder = run(
        settings,
        algorithm={"num_iterations": 2, **algorithm},
        trainer={"max_steps": 4, "save_steps": 4, "steps_per_generation": 2, "per_device_train_batch_size": 4},
    )
    assert len(logged(folder, "grad_norm")) == 4
    assert all(0 < value < 100 for value in logged(folder, "grad_norm"))
    assert logged(folder, "kl")[-1] != 0  # k1 can be negative on a sample


@pytest.mark.parametrize("old_logp", ["replay", "rollout"])
def test_later_updates_compare_with_the_policy_from_before_the_first(settings, monkeypatch, nano_checkpoint, old_logp):
    """Four updates per rollout: each sample's old policy is the one that drew it, not the one an update ago."""
    batches = record_loss_inputs(monkeypatch)
    folder = run(
        settings,
        algorithm={"num_iterations": 2, "old_logp": old_logp},
        trainer={"max_steps": 8, "save_steps": 4, "steps_per_generation": 2, "per_device_train_batch_size": 4},
    )
    assert len(batches) == 8
    for number, (rows, seen) in enumerate(batches):
        drew = nano_checkpoint if number < 4 else folder.path / "checkpoint-4"
        model = UniARForConditionalGeneration.from_pretrained(drew)
        with torch.no_grad():
            expected = GUIDED.policy_gap(rows.replay(model, GUIDED))
        assert torch.allclose(seen.old_gap, expected, atol=1e-4)
        moved = (seen.gap.detach() - expected).abs().mean()
        assert moved < 1e-5 if number % 4 == 0 else moved > 1e-3
        from_rollout = GUIDED.policy_gap(rows.drawn)
        assert torch.equal(seen.old_gap, from_rollout) == (old_logp == "rollout")
        assert (rows.old is not None) == (old_logp == "replay")


def test_one_update_a_rollout_needs_no_old_policy(settings, monkeypatch):
    batches = record_loss_inputs(monkeypatch)
    run(settings, trainer={"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2})
    assert len(batches) == 6
    assert all(torch.equal(seen.old_gap, seen.gap.detach()) and rows.old is None for rows, seen in batches)


def test_loss_scale_is_a_factor_of_the_gradient(settings, tmp_path):
    plain, scaled = (
        run(
            settings,
            algorithm={"loss": "dapo", "beta": 0.5, "entropy_coef": 0.1, "loss_scale": factor},
            trainer={"max_steps": 1, "max_grad_norm": 1e9, "save_strategy": "no"},
            evaluate={"prompts": None, "at_end": False},
            output_dir=str(tmp_path / f"scale-{factor}"),
        )
        for factor in (1, 1024)
    )
    assert logged(scaled, "grad_norm")[0] == pytest.approx(1024 * logged(plain, "grad_norm")[0], rel=1e-5)


def record_loss_inputs(monkeypatch) -> list[tuple[Pictures, LossInputs]]:
    """Filled during a run: the turns of each forward pass, and what the loss was given of them."""
    batches: list[tuple[Pictures, LossInputs]] = []
    compute = TurnLoss._of_pictures

    def computing(self, model, rows, *given):
        def looking(inputs, chosen):
            batches.append((rows, inputs))
            return policy_loss(inputs, chosen)

        monkeypatch.setattr("rl.trainer.turn_loss.policy_loss", looking)
        return compute(self, model, rows, *given)

    monkeypatch.setattr(TurnLoss, "_of_pictures", computing)
    return batches


def test_lora_starts_at_its_reference_and_leaves_the_base(settings, nano_checkpoint):
    folder = run(settings, model={"lora": {"r": 4, "alpha": 8}})
    assert logged(folder, "kl")[0] == 0
    assert logged(folder, "kl")[-1] > 0
    assert (folder.path / "checkpoint-3" / "adapter_model.safetensors").is_file()
    before, after = weights(nano_checkpoint), weights(folder.final)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(".layers." in name or name.startswith("visual_decoder.") for name in changed)


def test_bfloat16_passes_the_step_one_check(settings, caplog):
    folder = run(settings, model={"dtype": "bfloat16"})
    assert "configs/deepspeed/zero2.json), or set model.dtype: float32 and trainer.bf16: true" in caplog.text
    assert 0 <= max(logged(folder, "rollout/logp_difference")) < 0.02  # with prefixes of aligned widths, 0 on some CPUs
    assert {t.dtype for name, t in weights(folder.final).items() if "bsq" not in name} == {torch.float32}


def test_a_policy_that_is_not_the_one_that_drew_stops_the_run(settings):
    with pytest.raises(RolloutMismatch, match="differs from the one that drew"):
        run(settings, algorithm={"step1_tolerance": 1e-12})


SOURCE_REWARD = """
def source_colour(images, source_images, metadata):
    for image, sources in zip(images, source_images, strict=True):
        for source in sources:
            assert source.size == image.size
            assert source.getpixel((0, 0)) == source.getpixel((image.width - 1, image.height - 1))
    return [float(sources[0].getpixel((0, 0))[0]) if sources else 5.0 for sources in source_images]
"""


def test_editing_and_drawing_train_together(settings, tmp_path):
    for colour in COLOURS:
        Image.new("RGB", (96, 80), colour).save(tmp_path / f"{colour}.png")
    rows = [{"prompt": "make it red", "image": f"{colour}.png"} for colour in COLOURS[:-1]]
    lines = [json.dumps(row) for row in (*rows, {"prompt": "a red circle"})]
    (tmp_path / "edits.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "seen.py").write_text(SOURCE_REWARD)
    folder = run(
        settings,
        data={"prompts": str(tmp_path / "edits.jsonl")},
        evaluate={"prompts": None},
        rewards=[{"use": f"{tmp_path / 'seen.py'}:source_colour"}],
    )
    assert max(logged(folder, "rollout/logp_difference")) < 1e-5
    assert logged(folder, "rewards/source_colour/failed") == [0] * len(logged(folder, "reward"))


def test_accumulated_micro_batches_are_one_batch(settings, tmp_path):
    whole = run(settings)
    trainer = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    parts = run(settings, trainer=trainer, output_dir=str(tmp_path / "parts"))
    for key in ("reward", "kl", "grad_norm"):
        assert logged(whole, key) == pytest.approx(logged(parts, key), rel=1e-4, abs=1e-8), key


def test_mixed_precision_with_float32_weights(settings):
    folder = run(settings, trainer={"bf16": True})
    assert 0 < max(logged(folder, "rollout/logp_difference")) < 0.02


def test_prompts_keep_their_noise_in_another_order(settings, tmp_path):
    records = load_prompts(settings["data"]["prompts"])
    lines = Path(settings["data"]["prompts"]).read_text().splitlines()
    (tmp_path / "reversed.jsonl").write_text("\n".join(lines[::-1]) + "\n")
    assert {record.id for record in load_prompts(tmp_path / "reversed.jsonl")} == {record.id for record in records}


def test_the_commands_by_themselves(settings, tmp_path, capsys):
    folder = run(settings)
    (tmp_path / "recipe.yaml").write_text(json.dumps(settings))
    assert main(["export", str(folder.path / "checkpoint-3"), "--output", str(tmp_path / "exported")]) == 0
    exported, final = weights(tmp_path / "exported"), weights(folder.final)
    assert all(torch.equal(final[name], exported[name]) for name in final)
    capsys.readouterr()
    command = [
        "evaluate",
        str(tmp_path / "recipe.yaml"),
        "--model",
        str(folder.final),
        "--output",
        str(tmp_path / "scores"),
    ]
    assert main(command) == 0
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores["metrics"]["eval_reward"] == pytest.approx(logged(folder, "eval_reward")[-1])
    assert (tmp_path / "scores" / "samples.png").is_file()
    assert f"reward: {scores['metrics']['eval_reward']:.4f}" in capsys.readouterr().out


def _yaml(path: Path) -> dict:
    import yaml

    return yaml.safe_load(path.read_text())
