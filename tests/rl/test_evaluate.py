import math

import pytest
import torch

from rewards import RewardSpec, RewardSuite
from rl.data.prompts import PromptRecord
from rl.evaluation.evaluate import Evaluator, paired_gain, standard_error, total_scores
from rl.policy.samples import DrawSettings
from rl.scoring.scorer import LocalScorer, ScoredList

SETTINGS = DrawSettings(
    height=64,
    width=64,
    temperature=0.5,
    guidance_scale=2.0,
    upsampling_ratio=1.0,
    num_inference_steps=2,
    decoder_guidance_scale=1.0,
    decode_batch_size=8,
    seed=1,
)


def test_totals_leave_out_what_does_not_apply():
    values = torch.tensor([[1.0, 2.0], [math.nan, 2.0], [math.nan, math.nan]], dtype=torch.float64)
    totals = total_scores(values, torch.tensor([10.0, 1.0], dtype=torch.float64))
    assert totals[:2].tolist() == [12.0, 2.0]
    assert math.isnan(totals[2])


def test_standard_error_of_the_mean():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, math.nan])
    assert standard_error(values) == pytest.approx(math.sqrt(5 / 3) / 2)
    assert math.isnan(standard_error(torch.tensor([1.0])))


def evaluator(processor, decoder, suite) -> Evaluator:
    records = [PromptRecord(f"prompt {n}", id=str(n)) for n in range(5)]
    return Evaluator(
        records,
        processor,
        LocalScorer(decoder, ScoredList(suite, SETTINGS), processor),
        SETTINGS,
        samples_per_prompt=2,
        grid_prompts=3,
    )


def test_evaluations_are_paired(nano_model, nano_processor, nano_decoder):
    suite = RewardSuite([RewardSpec.from_mapping({"use": "compressibility", "weight": 2.0})])
    held_out = evaluator(nano_processor, nano_decoder, suite)
    before, again = held_out.run(nano_model), held_out.run(nano_model)
    assert torch.equal(before.totals, again.totals)
    assert paired_gain(before.totals, again.totals) == (0.0, 0.0)
    assert torch.equal(before.totals, 2 * before.values[:, 0])
    assert before.values.shape == (10, 1)
    assert [record.id for record, _, _ in before.shown] == ["0", "1", "2"]
    assert before.shown[1][2] == before.totals[2].item()
    assert before.metrics()["eval_reward"] == pytest.approx(before.totals.mean().item())
    with torch.no_grad():
        nano_model.output_layer_vistok[-1].weight.mul_(-1)
    after = held_out.run(nano_model)
    assert not torch.equal(before.totals, after.totals)


def test_a_sample_that_a_reward_failed_on_has_no_total(nano_model, nano_processor, nano_decoder, tmp_path):
    """Its other rewards alone would be another quantity, and leave the mean better or worse by which samples fail."""
    (tmp_path / "picky.py").write_text(
        "def picky(prompts, images):\n    return ['no number' if p.endswith('3') else 1.0 for p in prompts]\n"
    )
    picky = {"use": f"{tmp_path / 'picky.py'}:picky", "on_error": "skip"}
    entries = [{"use": "compressibility"}, picky, {**picky, "name": "watched", "weight": 0}]
    evaluation = evaluator(nano_processor, nano_decoder, RewardSuite.from_recipe(entries)).run(nano_model)
    assert evaluation.totals.isnan().tolist() == [number in (6, 7) for number in range(10)]
    assert not evaluation.values[:, 0].isnan().any()
    assert evaluation.metrics()["eval_excluded_samples"] == 2
    watched = evaluator(nano_processor, nano_decoder, RewardSuite.from_recipe([entries[0], entries[2]])).run(nano_model)
    assert not watched.totals.isnan().any()
