"""The contract: what a reward is given, as a batch or as the columns of a function, and what it may return."""

import functools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from support.numbered_batch import make_batch, red_channel

from rewards import RewardBatch, RewardSpec, RewardSuite
from rewards.contract.function import FunctionReward
from rewards.contract.protocol import BrokenContract, read_scores
from uniar.errors import UserError

# RewardBatch


def test_batch_lengths_must_agree():
    with pytest.raises(ValueError, match="a batch of 2 prompts has 1 images"):
        RewardBatch(["a", "b"], [Image.new("RGB", (1, 1))])
    with pytest.raises(ValueError, match="a batch of 2 prompts has 3 tasks"):
        make_batch(2, tasks=["x"] * 3)
    with pytest.raises(ValueError, match="uint8 of shape"):
        make_batch(2, bits=torch.zeros(2, 8))


def test_select_takes_the_same_rows_of_everything():
    bits = torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1, 1, 1)
    batch = make_batch(4, tasks=list("abcd"), metadata=[{"n": n} for n in range(4)], bits=bits)
    part = batch.select([3, 1])
    assert (part.prompts, part.tasks, part.metadata) == (["prompt 3", "prompt 1"], ["d", "b"], [{"n": 3}, {"n": 1}])
    assert [red_channel(image) for image in part.images] == [3, 1]
    assert part.bits.flatten().tolist() == [3, 1]
    assert len(batch.select([])) == 0


def test_batches_join_again():
    bits = torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1, 1, 1)
    picture = Image.new("RGB", (1, 1))
    batch = make_batch(
        4, tasks=list("abcd"), bits=bits, source_images=[[picture], [], [], []], texts=[[], ["b"], [], []]
    )
    parts = [batch.select([0]), batch.select([1, 2]), batch.select([3])]
    again = RewardBatch.joined(parts)
    assert (again.prompts, again.tasks, again.texts) == (batch.prompts, batch.tasks, batch.texts)
    assert again.source_images == batch.source_images
    assert torch.equal(again.bits, bits)
    assert RewardBatch.joined([make_batch(1), make_batch(2)]).bits is None


def test_only_rewards_that_need_no_image_see_samples_without():
    seen = {}

    def looks(images):
        seen["images"] = images
        return [1.0] * len(images)

    def reads(texts):
        seen["texts"] = texts
        return [float(len(row)) for row in texts]

    batch = RewardBatch(["a", "b"], [None, Image.new("RGB", (1, 1))], texts=[["x"], []])
    table = RewardSuite([RewardSpec(looks), RewardSpec(reads)]).score(batch)
    assert len(seen["images"]) == 1
    assert seen["texts"] == [["x"], []]
    assert table.column("reads").tolist() == [1, 0]
    assert math.isnan(table.column("looks")[0])
    assert table.failures == {"looks": 0, "reads": 0}


def test_columns_have_one_entry_a_sample_and_the_batch_wins_over_metadata():
    batch = make_batch(2, tasks=["t", None], metadata=[{"text": "hi", "prompts": "no"}, {"count": 3}])
    columns = batch.columns()
    assert columns["text"] == ["hi", None]
    assert columns["count"] == [None, 3]
    assert columns["task"] == ["t", None]
    assert columns["prompts"] == ["prompt 0", "prompt 1"]
    assert columns["bits"] is None


# What a reward may return


@pytest.mark.parametrize(
    "result",
    [
        [1, 2.5, None],
        (1, 2.5, math.nan),
        np.array([1, 2.5, np.nan], dtype=np.float32),
        torch.tensor([1, 2.5, math.nan], dtype=torch.bfloat16, requires_grad=True),
        [np.float16(1), torch.tensor(2.5), np.array(math.nan)],
    ],
)
def test_read_scores_takes_numbers_and_none_in_any_sequence(result):
    scores, faults = read_scores(result, 3)
    assert scores[:2] == [1.0, 2.5]
    assert math.isnan(scores[2])
    assert faults == {}
    assert all(type(score) is float for score in scores)


@pytest.mark.parametrize(
    "item", ["1.0", True, np.bool_(True), torch.tensor(True), math.inf, -math.inf, 10**400, 1j, [1.0], {}, object()]
)
def test_read_scores_blames_the_sample_whose_score_is_no_finite_number(item):
    scores, faults = read_scores([1.0, item, 3.0], 3)
    assert list(faults) == [1]
    assert "number or None is needed" in faults[1]
    assert scores[0] == 1.0
    assert math.isnan(scores[1])
    assert scores[2] == 3.0


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([1.0, 2.0], "returned 2 scores for 3 samples"),
        (np.ones((3, 1)), r"returned an array of shape \(3, 1\)"),
        (torch.tensor(1.0), r"returned an array of shape \(\)"),
        (None, r"returned None \(NoneType\)"),
        ("abc", r"returned 'abc' \(str\)"),
        ({0: 1, 1: 2, 2: 3}, r"returned .* \(dict\)"),
        (1.0, r"returned 1.0 \(float\)"),
    ],
)
def test_read_scores_refuses_what_cannot_be_matched_to_the_samples(result, message):
    with pytest.raises(BrokenContract, match=message):
        read_scores(result, 3)


# Functions


def test_a_function_gets_the_columns_that_it_names():
    seen = {}

    def picky(images, text, task, own=7, *, factor=1.0):
        seen.update(text=text, task=task, own=own)
        return [factor * len(images)] * len(images)

    suite = RewardSuite([RewardSpec(picky, params={"factor": 2})])
    table = suite.score(make_batch(2, tasks=["t", None], metadata=[{"text": "hi"}, {"own": 3, "factor": 9}]))
    assert seen == {"text": ["hi", None], "task": ["t", None], "own": 7}
    assert table.values.flatten().tolist() == [4, 4]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("completions", "Did you mean 'images'?"),
        ("completion_ids", "Did you mean 'bits'?"),
        ("prompt", "Did you mean 'prompts'?"),
        ("tasks", "Did you mean 'task'?"),
        ("colour", "Did you mean 'color'?"),
        ("solution", "metadata, bits, source_images, texts, color."),
    ],
)
def test_a_column_that_no_sample_has_is_refused(name, hint):
    scope = {}
    exec(f"def trl_style(prompts, images, {name}, **kwargs): return [1.0] * len(prompts)", scope)
    suite = RewardSuite([RewardSpec(scope["trl_style"], on_error="skip")])
    metadata = [{"color": "red"}, {}]
    message = rf"reward 'trl_style': the function takes the column '{name}', which no prompt has; .*"
    with pytest.raises(UserError, match=message) as caught:
        suite.check_columns(["a", "b"], metadata)
    assert str(caught.value).endswith(hint)


def test_a_column_that_some_sample_has_is_none_elsewhere():
    def tells(prompts, images, text):
        return [None if t is None else len(t) for t in text]

    suite = RewardSuite([RewardSpec(tells)])
    suite.check_columns([None] * 2, [{}, {"text": "hi"}])
    assert suite.score(make_batch(2)).values.isnan().all()  # in a batch of those without it
    suite = RewardSuite([RewardSpec(tells, tasks=("a",))])
    with pytest.raises(UserError, match="takes the column 'text'"):
        suite.check_columns(["a", "b"], [{}, {"text": "hi"}])  # not of the tasks that it scores
    suite.check_columns(["b"], [{}])


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (0, 2, 1)])
def test_what_was_scored_before_changes_no_score(order):
    """As on a server, where nobody knows what samples there will be."""

    def tells(prompts, images, text, size):
        return [len(t or "") + (s or 0.5) for t, s in zip(text, size, strict=True)]

    suite, rows = RewardSuite([RewardSpec(tells)]), [{}, {"text": "hi"}, {"size": 3, "text": "a"}]
    scores = {row: suite.score(make_batch(1, metadata=[rows[row]])).values.item() for row in order}
    assert [scores[row] for row in range(3)] == [0.5, 2.5, 4]


def test_metadata_does_not_replace_a_functions_own_parameters(caplog):
    def near(prompts, images, limit: float = 0.5, size: int = 3, **columns):
        seen.append((limit, size, sorted(columns)))
        return [limit] * len(prompts)

    seen = []
    batch = make_batch(2, metadata=[{"limit": 9, "size": 8, "n": 1}, {"limit": 7}])
    for params, expected in (({}, (0.5, 3)), ({"limit": 2}, (2, 3))):
        suite = RewardSuite([RewardSpec(near, params=params)])
        suite.check_columns(batch.tasks, batch.metadata)
        suite.score(batch)
        assert seen[-1] == (*expected, ["bits", "metadata", "n", "source_images", "task", "texts"])
    warned = [record.args[1] for record in caplog.records]
    assert warned == ["limit", "size", "size"]  # once, and not where the recipe says what it is


def test_a_function_with_columns_gets_them_all():
    seen = {}

    def open_ended(prompts, images, **columns):
        seen.update(columns)
        return [0] * len(prompts)

    RewardSuite([RewardSpec(open_ended)]).score(make_batch(1, metadata=[{"text": "hi", "n": 1}]))
    own = {"task": [None], "metadata": [{"text": "hi", "n": 1}], "bits": None, "source_images": [[]], "texts": [[]]}
    assert seen == {**own, "text": ["hi"], "n": [1]}


@pytest.mark.parametrize("name", ["pointwise", "overlaps_decoding", "needs_image"])
def test_a_function_may_declare_that_it_wants_the_whole_batch(name):
    def ranks(prompts, images):
        raise ValueError("no")

    assert getattr(RewardSuite([RewardSpec(ranks)]).rewards[0], name) is True
    setattr(ranks, name, False)
    assert getattr(RewardSuite([RewardSpec(ranks)]).rewards[0], name) is False


def test_the_former_name_of_an_attribute_is_not_passed_over(tmp_path):
    text = "def meter(prompts, images):\n    return [0.0] * len(images)\n\nmeter.beside_decoding = False\n"
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match="it says beside_decoding, which is called overlaps_decoding"):
        RewardSpec.from_mapping({"use": f"{tmp_path / 'mine.py'}:meter"}).build()


def test_what_is_called_like_a_function_is_one():
    class Constant:
        def __call__(self, prompts, images, value: float = 0.5, **columns):
            return [value] * len(prompts)

        def score_all(self, prompts, images, value=0.5):
            return [value] * len(prompts)

    batch = RewardBatch(prompts=["a", "b"], images=[None, None])
    for called in (Constant(), Constant().score_all, functools.partial(Constant().score_all, value=0.1)):
        assert FunctionReward(called, {"value": 0.25}).score(batch) == [0.25, 0.25]
