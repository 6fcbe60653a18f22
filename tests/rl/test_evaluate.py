import math

import pytest
import torch
from support.warm_process import run_warm

from rewards import RewardSpec, RewardSuite
from rl.data.prompts import PromptRecord
from rl.distributed.sharing import shares_at_main
from rl.evaluation.evaluate import Evaluator, paired_gain, standard_error, total_scores
from rl.policy.samples import DrawSettings
from rl.records.rows import load_stored
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


class SparingScorer(LocalScorer):
    """Gives only the images that it was told to keep, as a decoding process does."""

    def begin(self, completions, samples, *, keep=(), **wanted):
        scores = super().begin(completions, samples, **wanted)

        def sparing():
            images, table = scores()
            return [image if place in keep else None for place, image in enumerate(images)], table

        return sparing


def evaluator(processor, decoder, suite, scorer=LocalScorer, **options) -> Evaluator:
    records = [PromptRecord(f"prompt {n}", id=str(n)) for n in range(5)]
    return Evaluator(
        records,
        processor,
        scorer(decoder, ScoredList(suite, SETTINGS), processor),
        SETTINGS,
        samples_per_prompt=2,
        grid_prompts=3,
        **options,
    )


def test_evaluations_are_paired(nano_model, nano_processor, nano_decoder):
    suite = RewardSuite([RewardSpec.from_mapping({"use": "compressibility", "weight": 2.0})])
    held_out = evaluator(nano_processor, nano_decoder, suite)
    before, again = held_out.run(nano_model), held_out.run(nano_model)
    assert torch.equal(before.totals, again.totals)
    assert paired_gain(before.totals, again.totals) == (0.0, 0.0)
    assert torch.equal(before.totals, 2 * before.values[:, 0])
    assert before.values.shape == (10, 1)
    assert [one.record.id for one in before.shown] == ["0", "1", "2"]
    assert before.shown[1].total == before.totals[2].item()
    assert before.metrics()["eval_reward"] == pytest.approx(before.totals.mean().item())
    with torch.no_grad():
        nano_model.output_layer_vistok[-1].weight.mul_(-1)
    after = held_out.run(nano_model)
    assert not torch.equal(before.totals, after.totals)


def test_what_is_shown_is_as_drawn_however_small_pictures_are_kept(nano_model, nano_processor, nano_decoder):
    suite = RewardSuite.from_recipe([{"use": "compressibility"}])
    drawn: dict[int | None, list] = {}
    for size in (0, 16, None):
        found = evaluator(nano_processor, nano_decoder, suite, SparingScorer, picture_size=size).run(nano_model)
        drawn[size] = [one.image.tobytes() for one in found.shown]
        stored = found.rows["picture"].to_pylist()
        assert {None if one is None else load_stored(one).size[0] for one in stored} == {
            {0: None, None: 64}.get(size, 16)
        }
        assert {one.image.size for one in found.shown} == {(64, 64)}
    assert drawn[0] == drawn[16] == drawn[None]
    assert load_stored(stored[0]).tobytes() != drawn[None][0]  # WebP loses some of it


def test_large_shares_go_to_the_main_process_alone(tmp_path):
    script = tmp_path / "share.py"
    script.write_text(
        "from accelerate import Accelerator\n"
        "from rl.distributed.sharing import shares_at_main\n"
        "processes = Accelerator(cpu=True)\n"
        "found = shares_at_main({processes.process_index: b'x' * (1 + processes.process_index)}, processes)\n"
        "print(f'rank {processes.process_index}: {found}', flush=True)\n"
    )
    done = run_warm(script, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rank 0: [{0: b'x'}, {1: b'xx'}]" in done.stdout
    assert "rank 1: []" in done.stdout
    assert shares_at_main("alone", None) == ["alone"]


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
