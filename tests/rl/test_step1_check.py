"""A replayed policy that is not the one that drew stops a run before its first update, in float32 as in bfloat16."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.training_runs import ROOT, changed, run, small_recipe

from rl.algorithm.guidance import Gaps, GuidanceSettings
from rl.cli import main
from rl.config.recipe import load_recipe
from rl.policy import replay as policy
from rl.policy.replay import Branch
from rl.trainer.step import Step
from rl.trainer.step1_check import STEP1_TOLERANCE, RolloutMismatch, compared, mismatch_of, parts

Replay = Callable[..., Gaps]
PRECISIONS = {"float32": {"bf16": False}, "bfloat16": {"bf16": True}}


def forgets_guidance(replay: Replay, *given) -> Gaps:
    gaps = replay(*given)
    return Gaps(gaps.cond, gaps.cond)


def has_another_temperature(replay: Replay, *given) -> Gaps:
    return Gaps(*(gap / 0.8 for gap in replay(*given)))


def sees_the_padding(replay: Replay, *given) -> Gaps:
    sound = Branch.joined

    def unmasked(rows: Sequence[Branch]) -> Branch:
        stacked = sound(rows)
        return replace(stacked, attention_mask=torch.ones_like(stacked.attention_mask))

    Branch.joined = unmasked
    try:
        return replay(*given)
    finally:
        Branch.joined = sound


def has_another_scale(replay: Replay, *given) -> Gaps:
    gaps = replay(*given)
    return Gaps(gaps.uncond + 1.3 * (gaps.cond - gaps.uncond), gaps.uncond)


def takes_one_branch_for_the_other(replay: Replay, *given) -> Gaps:
    return Gaps(*replay(*given)[::-1])


def reads_bits_of_the_token_before(replay: Replay, model, bits, *rows) -> Gaps:
    return replay(model, bits.roll(1, dims=1), *rows)


def takes_rows_for_columns(replay: Replay, model, bits, prompt: Branch, *rest) -> Gaps:
    positions = prompt.position_ids.clone()
    positions[:, 1:, -bits.shape[1] :] = positions[:, 1:, -bits.shape[1] :].flip(1)
    return replay(model, bits, replace(prompt, position_ids=positions), *rest)


NAMED = [forgets_guidance, has_another_temperature, sees_the_padding]
OTHERS = [
    has_another_scale,
    takes_one_branch_for_the_other,
    reads_bits_of_the_token_before,
    takes_rows_for_columns,
]


@pytest.fixture
def inject(monkeypatch):
    """`inject(fault)`: from now on the update replays with it; what else is replayed is sound."""

    def into(fault) -> None:
        sound = policy.replay
        monkeypatch.setattr("rl.policy.turns.replay", lambda *given: fault(sound, *given))

    return into


def refuse(recipe: dict, capsys) -> None:
    """The run ends with 1 and a sentence, before its first update."""
    path = Path(recipe["output_dir"]).with_suffix(".yaml")
    path.write_text(json.dumps(recipe))
    assert main(["train", str(path)]) == 1
    said = capsys.readouterr()
    assert "uniar-rl train: the replayed policy differs from the one that drew" in said.err
    assert "[1/" not in said.out
    assert list(Path(recipe["output_dir"]).glob("bad_batches/step-000001-*"))
    assert not (Path(recipe["output_dir"]) / "final").exists()


@pytest.fixture
def nano(nano_checkpoint: Path, tmp_path: Path) -> dict:
    recipe = small_recipe(nano_checkpoint, tmp_path)
    prompts = ["a red square", "a small green square to the left of a house", "blue", "the yellow one of two circles"]
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in prompts))
    return changed(recipe, rollout={"guidance": "guided", "guidance_scale": 2.0}, trainer={"save_strategy": "no"})


@pytest.mark.parametrize(
    ("fault", "precision"),
    [
        *[(fault, precision) for fault in NAMED for precision in PRECISIONS],
        *[(fault, "float32") for fault in OTHERS],  # random weights hardly look at where a token is
    ],
)
def test_nano(nano, inject, capsys, fault, precision):
    inject(fault)
    refuse(changed(nano, trainer=PRECISIONS[precision]), capsys)


def quickstart(folder: Path, *, seed: int = 0, **trainer) -> dict:
    """Its first update, with an eighth of its samples and nothing beside it."""
    recipe = load_recipe(ROOT / "configs" / "quickstart.yaml").to_mapping()
    recipe["data"]["prompts"] = str(ROOT / recipe["data"]["prompts"])
    recipe["model"]["path"] = str(ROOT / recipe["model"]["path"])
    return changed(
        recipe,
        rollout={"dynamic_sampling": None, "samples_per_prompt": 2},
        decode={"num_inference_steps": 1},
        evaluate={"prompts": None, "at_start": False},
        understanding={"questions": None},
        trainer={"max_steps": 1, "per_device_train_batch_size": 8, "save_strategy": "no", **trainer},
        output_dir=str(folder / "run"),
        seed=seed,
    )


@pytest.mark.parametrize(
    ("fault", "precision"),
    [
        *[(fault, "bfloat16") for fault in NAMED],
        *[pytest.param(fault, "bfloat16", marks=pytest.mark.slow) for fault in OTHERS],
        *[pytest.param(fault, "float32", marks=pytest.mark.slow) for fault in NAMED],
    ],
)
def test_uniar_tiny(tmp_path, inject, capsys, fault, precision):
    inject(fault)
    refuse(quickstart(tmp_path, **PRECISIONS[precision]), capsys)


SOUND = [
    {},
    {"guidance": "none", "guidance_scale": 1.0},
    {"guidance": "conditional"},
    {"guidance_scale": 4.0},
    {"temperature": 0.5},
    {"guidance_scale": 2.5, "temperature": 0.1},
]


@pytest.mark.parametrize(
    ("rollout", "seed"),
    [
        ({}, 0),
        *[pytest.param({}, seed, marks=pytest.mark.slow) for seed in (1, 2)],
        *[pytest.param(rollout, 3, marks=pytest.mark.slow) for rollout in SOUND[1:]],
    ],
)
def test_a_sound_policy_passes_with_room(tmp_path, rollout, seed):
    recipe = changed(quickstart(tmp_path, seed=seed), rollout=rollout, algorithm={"step1_tolerance": 0.025})
    assert run(recipe).final.is_dir()


def test_an_adapter_that_the_replay_leaves_out(nano, monkeypatch):
    recipe = changed(nano, model={"lora": {"r": 4, "alpha": 8}}, trainer={"save_strategy": "steps", "save_steps": 2})
    run(recipe, trainer={"max_steps": 2})
    sound = Step.loss

    def without(self, model, batch):
        with model.disable_adapter():
            return sound(self, model, batch)

    monkeypatch.setattr(Step, "loss", without)
    with pytest.raises(RolloutMismatch, match="differs from the one that drew"):
        run(recipe, resume=True, trainer={"max_steps": 4})


# Measures ------------------------------------------------------------------------------------------------------------


def measure(gap: torch.Tensor, drawn: torch.Tensor) -> dict[str, float]:
    return compared({name: value.item() for name, value in parts(gap, drawn).items()})


def mismatch(gap: torch.Tensor, drawn: torch.Tensor, dtype=torch.bfloat16, scale=1.0) -> RolloutMismatch | None:
    rollout = SimpleNamespace(guidance_settings=GuidanceSettings("guided", scale, 1.0))
    recipe = SimpleNamespace(rollout=rollout, algorithm=SimpleNamespace(step1_tolerance=None))
    return mismatch_of(measure(gap, drawn), recipe, dtype)


@pytest.mark.parametrize("size", [0.01, 1.0, 10.0, 1000.0], ids="gaps of size {}".format)
def test_whatever_the_policy_is_sure_of(size):
    """From bits that are coins to bits that are certain: rounding passes, another temperature does not."""
    generator = torch.Generator().manual_seed(0)
    drawn = size * torch.randn(4, 16, 1024, generator=generator)
    assert mismatch(drawn, drawn, torch.float32) is None
    rounded = drawn * (1 + 0.01 * torch.randn(drawn.shape, generator=generator))
    assert mismatch(rounded, drawn) is None
    if size > 0.01:  # all of these are coins
        assert mismatch(drawn / 0.8, drawn) is not None
        assert mismatch(drawn * 1.01, drawn, torch.float32) is not None


def test_a_policy_that_is_certain_of_every_bit():
    drawn = torch.tensor([300.0, -300.0]).repeat(512)
    assert measure(drawn * 1.01, drawn) == {
        "rollout/logp_difference": 0.0,
        "rollout/logp_difference_share": 0.0,
        "rollout/gap_scale": 1.0,
    }
    assert mismatch(-drawn, drawn) is not None
    assert mismatch(torch.full_like(drawn, torch.nan), drawn) is not None


def test_rounding_makes_neither_larger():
    """However coarse it is; noise of both kinds is allowed for where guidance magnifies it."""
    generator = torch.Generator().manual_seed(1)
    true, noise = torch.randn(200_000, generator=generator), torch.randn(2, 200_000, generator=generator)
    found = measure(true + 0.2 * noise[0], true + 0.2 * noise[1])
    assert found["rollout/gap_scale"] == pytest.approx(1, abs=0.01)
    assert found["rollout/logp_difference_share"] > 2 * STEP1_TOLERANCE[torch.bfloat16]
    assert mismatch(true + 0.2 * noise[0], true + 0.2 * noise[1]) is not None
    assert mismatch(true + 0.2 * noise[0], true + 0.2 * noise[1], scale=5.0) is None
