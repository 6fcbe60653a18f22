"""How many samples of a prompt `plan` takes to stand together in a micro-batch, against what is there."""

import random
from types import SimpleNamespace

import pytest
import torch
from support.planned_recipes import plan_of, planned_settings, recipe_of

from rl.plan.simulation import alike_of
from rl.trainer.train_batch import TrainBatch, in_whole_groups


@pytest.fixture
def settings(nano_checkpoint, tmp_path) -> dict:
    return planned_settings(nano_checkpoint, tmp_path)


@pytest.mark.parametrize(
    ("sections", "rows", "alike"),
    [
        ({}, 4, 4),
        ({}, 6, 2),
        ({}, 3, 1),
        ({}, 64, 4),
        ({"rollout": {"episodes": {"default": "answer"}}}, 4, 4),
        ({"rollout": {"episodes": {"default": "draw_check_redraw"}}}, 4, 1),
        ({"rollout": {"episodes": {"vqa": "answer"}}}, 4, 1),
        ({"rollout": {"dynamic_sampling": {"max_rounds": 2}}}, 4, 1),
        ({"trainer": {"gradient_accumulation_steps": 2, "steps_per_generation": 4}}, 4, 1),
        ({"trainer": {"gradient_accumulation_steps": 2}}, 4, 4),
        ({"model": {"attention": "flash_attention_2"}}, 4, 1),
    ],
)
def test_so_many_are_alike(settings, sections, rows, alike):
    assert alike_of(recipe_of(settings, **sections), rows) == alike


def test_a_plug_in_may_ask_another_thing_of_each_sample(settings, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from rl.episodes.requests import Draw, turns\n\n\n"
        "@turns('picture')\ndef mine(record):\n    yield Draw(record.prompt)\n"
    )
    assert alike_of(recipe_of(settings, rollout={"episodes": {"default": f"{tmp_path / 'mine.py'}:mine"}}), 4) == 1


def test_what_is_alike_takes_less(settings):
    together = plan_of(recipe_of(settings))
    apart = plan_of(recipe_of(settings, rollout={"dynamic_sampling": {"max_rounds": 2}}))
    for name in ("activations", "replay activations"):
        assert together.part(name) < 0.9 * apart.part(name)


def test_micro_batches_are_made_of_as_many(settings):
    """Whatever groups, processes and accumulation, after TRL's shuffle: each micro-batch is of runs of a prompt's
    samples, and each run has a multiple of what is planned."""
    rng = random.Random(0)
    for _ in range(200):
        group, rows, accumulated = (
            rng.choice([2, 3, 4, 6, 8]),
            rng.choice([1, 2, 3, 4, 6, 8, 12]),
            rng.choice([1, 2, 3]),
        )
        recipe = recipe_of(
            settings,
            rollout={"samples_per_prompt": group},
            trainer={"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulated},
        )
        alike, share = alike_of(recipe, rows), rows * accumulated
        for process in range(3):
            prompts = [f"{number // group}" for number in range(process * share, (process + 1) * share)]
            rng.shuffle(prompts)
            samples = [SimpleNamespace(sample=SimpleNamespace(record=SimpleNamespace(id=prompt))) for prompt in prompts]
            batches = [TrainBatch(samples[start : start + rows], torch.zeros(rows)) for start in range(0, share, rows)]
            for batch in in_whole_groups(batches, accumulated):
                names = [one.sample.record.id for one in batch.trajectories]
                for start in range(0, rows, alike):
                    assert len(set(names[start : start + alike])) == 1, (group, rows, accumulated)
