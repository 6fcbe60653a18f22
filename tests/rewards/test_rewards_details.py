"""What a reward says besides a score: read, joined, kept in the logs, shown under the images."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from support.training_runs import SMALL_DRAWING

from rewards import Reward, RewardBatch, RewardError, RewardSpec, RewardSuite, RewardTable
from rewards.contract.protocol import split_details
from rl.config.recipe import recipe_from_mapping
from rl.data.prompts import PromptRecord
from rl.evaluation.evaluate import Evaluator, Shown
from rl.records.rows import read_rows
from rl.run.pictures import sample_grid
from rl.scoring.scorer import LocalScorer, ScoredList
from rl.train import train

PLUGIN = """
def spoken(prompts, images):
    return [{"score": len(prompt) / 10, "why": f"has {len(prompt)} letters"} for prompt in prompts]
"""


def batch_of(count=3, tasks=None):
    return RewardBatch([f"prompt {n}" for n in range(count)], [Image.new("RGB", (4, 4))] * count, tasks)


def table_of(function, count=3, tasks=None, **settings):
    return RewardSuite([RewardSpec(function, **settings)]).score(batch_of(count, tasks))


def test_scores_and_details_come_apart():
    def spoken(prompts, images):
        return [{"score": 0.5, "why": "fine"}, 2.0, {"score": None, "why": "nothing to judge"}]

    table = table_of(spoken)
    assert table.values[:2, 0].tolist() == [0.5, 2.0]
    assert math.isnan(table.values[2, 0])
    assert table.details == {"spoken": [{"why": "fine"}, None, {"why": "nothing to judge"}]}
    assert table.failures == {"spoken": 0}


def test_a_reward_without_details_leaves_none():
    def plain(prompts, images):
        return [{"score": 1.0}, 2.0, None]

    assert table_of(plain).details == {}
    assert table_of(lambda prompts, images: torch.ones(3), name="tensor").details == {}
    assert split_details(np.ones(3))[1] == []


def test_details_become_plain_json():
    class Odd:
        def __str__(self):
            return "odd"

    said = {
        "score": 1.0,
        "text": "t",
        "flag": True,
        "count": np.int64(3),
        "share": np.float32(0.5),
        "nan": math.nan,
        "half": torch.tensor(0.25, dtype=torch.float16),
        "boxes": torch.tensor([[1, 2], [3, 4]]),
        "nested": {"a": (1, None), 2: {"x"}},
        "object": Odd(),
        "bytes": b"\x00",
    }
    _, [details] = split_details([said])
    assert json.loads(json.dumps(details, allow_nan=False)) == {
        "text": "t",
        "flag": True,
        "count": 3,
        "share": 0.5,
        "nan": None,
        "half": 0.25,
        "boxes": [[1, 2], [3, 4]],
        "nested": {"a": [1, None], "2": ["x"]},
        "object": "odd",
        "bytes": "b'\\x00'",
    }


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"why": "no score"}, r"without the key 'score', whose number or None is needed"),
        ({"score": "high", "why": "x"}, r"returned 'high' \(str\), a number or None is needed"),
        ({"score": math.inf}, r"returned inf \(float\), a finite number"),
        ({"score": True}, r"returned True \(bool\)"),
        ({"score": {"score": 1.0}}, r"without the key 'score'|a number or None is needed"),
    ],
)
def test_a_score_inside_details_is_held_to_the_same_contract(item, message):
    def plugin(prompts, images):
        return [1.0, item, 1.0]

    with pytest.raises(RewardError, match=message) as caught:
        table_of(plugin)
    assert caught.value.index == 1


def test_details_keep_their_rows():
    """Behind routing by task, and behind a retry sample by sample."""

    class Picky(Reward):
        def score(self, batch):
            if "prompt 2" in batch.prompts:
                raise ConnectionError("not that one")
            return [{"score": 1.0, "why": prompt} for prompt in batch.prompts]

    suite = RewardSuite([RewardSpec(Picky, tasks=["x"], on_error="skip", retries=0)])
    table = suite.score(batch_of(5, ["x", "y", "x", "x", "y"]))
    assert table.details == {"Picky": [{"why": "prompt 0"}, None, None, {"why": "prompt 3"}, None]}
    assert table.failures == {"Picky": 1}


def test_tables_join_their_details():
    def odd(prompts, images):
        return [{"score": 1.0, "n": prompt[-1]} if int(prompt[-1]) % 2 else 1.0 for prompt in prompts]

    suite = RewardSuite([RewardSpec(odd), RewardSpec("compressibility")])
    batch = batch_of(4)
    parts = [suite.score(batch.select(rows)) for rows in ([0], [1, 2], [3])]
    assert parts[0].details == {}
    joined = RewardTable.cat(parts)
    assert joined.details == suite.score(batch).details == {"odd": [None, {"n": "1"}, None, {"n": "3"}]}
    assert torch.equal(joined.weights, suite.score(batch).weights)
    whole = suite.score(batch)
    filled = RewardTable.empty(suite.names, whole.weights)
    for places, part in zip(([0], [1, 2], [3]), parts, strict=True):
        filled = filled.filled(part, places=places)
    assert (filled.details, filled.values.tolist()) == (whole.details, whole.values.tolist())
    assert filled.seconds == joined.seconds
    swapped = filled.filled(whole.rows([3, 2]), ["odd"], [0, 1])
    assert swapped.details == {"odd": [{"n": "3"}, None, None, {"n": "3"}]}
    assert torch.equal(swapped.column("compressibility"), whole.column("compressibility"))


# Where they go


def test_they_stand_under_the_images(tmp_path):
    tiles = [Shown(PromptRecord("a prompt"), Image.new("RGB", (64, 64), "red"), 0.5)] * 2
    sizes, dark = [], []
    for name, notes in (("without", None), ("empty", ["", ""]), ("with", ["", "judge: " + "too many words " * 40])):
        sample_grid(tiles, tmp_path / f"{name}.png", notes=notes)
        with Image.open(tmp_path / f"{name}.png") as image:
            sizes.append(image.size)
            dark.append(int((np.asarray(image.convert("L")) < 200).sum()))
    assert sizes[0] == sizes[1]
    assert sizes[2][1] > sizes[0][1]
    assert sizes[2][0] == sizes[0][0]
    assert dark[0] == dark[1] < dark[2]


def test_an_evaluation_carries_them(nano_model, nano_processor, nano_decoder):
    def spoken(prompts, images):
        return [{"score": 1.0, "why": f"it is {prompt}"} for prompt in prompts]

    def counted(prompts, images):
        return [{"score": 1.0, "seen": 3, "asked": 4} for _ in prompts]

    suite = RewardSuite([RewardSpec(spoken), RewardSpec(counted), RewardSpec("compressibility")])
    records = [PromptRecord(f"prompt {n}", id=str(n)) for n in range(3)]
    several = {"samples_per_prompt": 2, "grid_prompts": 2}
    scorer = LocalScorer(nano_decoder, ScoredList(suite, SMALL_DRAWING), nano_processor)
    held_out = Evaluator(records, nano_processor, scorer, SMALL_DRAWING, **several)
    evaluation = held_out.run(nano_model)
    assert evaluation.details["spoken"] == [{"why": f"it is prompt {n}"} for n in (0, 0, 1, 1, 2, 2)]
    assert evaluation.notes == [f"spoken: it is prompt {n}; counted: seen 3, asked 4" for n in (0, 1)]
    assert set(evaluation.details) == {"spoken", "counted"}


def test_a_run_keeps_them(nano_checkpoint, tmp_path):
    (tmp_path / "spoken.py").write_text(PLUGIN)
    prompts = ["a red square", "a blue circle"]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    recipe = {
        "model": {"path": str(nano_checkpoint), "dtype": "float32"},
        "data": {"prompts": str(tmp_path / "prompts.jsonl")},
        "rollout": {"height": 64, "width": 64, "samples_per_prompt": 2, "guidance": "none", "guidance_scale": 1.0},
        "decode": {"num_inference_steps": 1, "batch_size": 8},
        "rewards": [{"use": f"{tmp_path / 'spoken.py'}:spoken"}, {"use": "compressibility"}],
        "evaluate": {"prompts": str(tmp_path / "prompts.jsonl"), "at_start": False, "guidance_scale": 1.0},
        "trainer": {"max_steps": 2, "per_device_train_batch_size": 4, "gradient_checkpointing": False},
        "output_dir": str(tmp_path / "run"),
    }
    folder = train(recipe_from_mapping(recipe))
    lines = [json.loads(line) for line in folder.details.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1] * 4 + [2] * 4
    for line in lines:
        letters = len(line["prompt"])
        assert line["details"] == {"spoken": {"why": f"has {letters} letters"}}
        assert line["scores"]["spoken"] == letters / 10
        assert line["scores"]["compressibility"] < 0
    kept = [json.loads(details) for details in read_rows(folder.rows(2))["details"].to_pylist()]
    assert kept == [{"spoken": {"why": f"has {len(prompt)} letters"}} for prompt in prompts]
    assert set(folder.evaluated_totals()) == {2}
    folder.forget_after(1)
    assert len(folder.details.read_text().splitlines()) == 4
