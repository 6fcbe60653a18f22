"""Which turns are replayed together, and what each counts for."""

import itertools
import random
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch

from rl.algorithm.guidance import Gaps
from rl.policy.replay import Branch
from rl.policy.turns import Kind, Pictures, Texts, joined
from rl.trainer import forwards
from rl.trainer.forwards import Forwards
from rl.trainer.train_batch import TrainBatch, in_whole_groups

CONFIG = SimpleNamespace(
    image_token_id=7, vision_config=SimpleNamespace(code_shape=(2, 4, 3)), text_config=SimpleNamespace(hidden_size=8)
)
SHAPE = CONFIG.vision_config.code_shape


def branch(prefix: int, tail: int, pictures: int | None = None) -> Branch:
    ids = torch.arange(1, prefix + tail + 1)[None]
    bits = None if pictures is None else [torch.ones(pictures, *SHAPE, dtype=torch.uint8)]
    return Branch(ids, torch.ones_like(ids), ids[:, None].expand(1, 3, -1), bits)


def picture(tokens: int, prefix: int = 3, pictures: int | None = None) -> Pictures:
    bits = torch.randint(0, 2, (1, tokens, *SHAPE), dtype=torch.uint8)
    gaps = torch.randn(bits.shape)
    return Pictures(bits, branch(prefix, tokens, pictures), None, Gaps(gaps, None))


def text(tokens: int, prefix: int = 3, pictures: int | None = None) -> Texts:
    said = torch.arange(1, tokens + 1)[None]
    return Texts(said, said > 0, branch(prefix, tokens, pictures), torch.randn(1, tokens))


def makers(processes: int, size: int, kinds=("picture", "text")) -> Forwards:
    return Forwards(
        SimpleNamespace(num_processes=processes, device=torch.device("cpu")),
        CONFIG,
        size=size,
        kinds=kinds,
        guided=False,
    )


def together(monkeypatch, calls) -> list:
    """Runs calls as processes that gather objects from each other would: each in turn, until all have said the same
    number of times what they have."""
    said: list[list] = [[] for _ in calls]
    while True:
        results, waiting = [], False
        for process, call in enumerate(calls):
            turn = itertools.count()

            def gather(objects, process=process, turn=turn):
                nonlocal waiting
                number = next(turn)
                if number == len(said[process]):
                    said[process].append(objects[0])
                if any(len(other) <= number for other in said):
                    waiting = True
                    raise _Waits
                return [other[number] for other in said]

            monkeypatch.setattr(forwards, "gather_object", gather)
            try:
                results.append(call())
            except _Waits:
                results.append(None)
        if not waiting:
            return results


class _Waits(Exception):
    pass


def test_every_process_makes_the_same_passes(monkeypatch):
    mine, theirs = [picture(4), text(2), picture(4), picture(4)], [picture(6), picture(6)]
    one, two = together(monkeypatch, [lambda own=own: makers(2, 2).of([own])[0] for own in (mine, theirs)])
    kinds = [Kind("text", 0), Kind("picture", 4), Kind("picture", 4), Kind("picture", 6)]
    assert [forward.places for forward in one] == [(1,), (0, 2), (3,), ()]
    assert [forward.places for forward in two] == [(), (), (), (0, 1)]
    for passes in (one, two):
        assert [(forward.is_text, forward.turns[0].kind.name) for forward in passes] == [
            (kind.name == "text", kind.name) for kind in kinds
        ]
    assert torch.equal(one[1].rows().bits, torch.cat([mine[0].bits, mine[2].bits]))


def test_a_recipe_that_writes_and_draws_has_a_pass_of_either_in_each_micro_batch():
    [first, second] = makers(1, 2).of([[picture(4)], [text(3)]])
    assert [(forward.is_text, bool(forward.places)) for forward in first] == [(True, False), (False, True)]
    assert [(forward.is_text, bool(forward.places)) for forward in second] == [(True, True), (False, False)]
    [alone] = makers(1, 2, kinds=["picture"]).of([[picture(4)]])
    assert [forward.is_text for forward in alone] == [False]


def batch(*samples) -> TrainBatch:
    """Samples of these turns, whose advantages are 1, 2, 3, …"""
    trajectories = [SimpleNamespace(turns=tuple(turns)) for turns in samples]
    return TrainBatch(trajectories, torch.arange(1.0, len(samples) + 1))


def test_a_plain_rollout_weighs_every_pass_by_one(monkeypatch):
    batches = [[batch([picture(4)], [picture(4)]) for _ in range(7)] for _ in range(7)]
    aggregations = dict.fromkeys(("text", "picture"), "sample")
    made = together(
        monkeypatch, [lambda own=own: makers(7, 2, ["picture"]).of_updates(own, aggregations, 7) for own in batches]
    )
    assert {forward.weight for process in made for passes in process for forward in passes} == {1.0}


@pytest.mark.parametrize("how", ["sample", "batch", "constant"])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_weights_make_the_mean_over_the_turns_of_an_update(monkeypatch, how, processes):
    """Of each turn's own number: whatever the split, the mean over processes and micro-batches is the mean over the
    update, each kind for itself."""
    rng = random.Random(f"{how} {processes}")
    micro_batches, accumulated = 4, 2
    batches = []
    for _ in range(processes):
        own = []
        for _ in range(micro_batches):
            samples = []
            for _ in range(3):
                choices = [[picture(4)], [picture(6), text(rng.randint(1, 5))], [text(rng.randint(1, 5))]]
                samples.append(rng.choice(choices))
            own.append(batch(*samples))
        batches.append(own)
    aggregations = dict.fromkeys(("text", "picture"), how)
    made = together(
        monkeypatch,
        [lambda own=own: makers(processes, 2).of_updates(own, aggregations, accumulated) for own in batches],
    )
    for update in range(0, micro_batches, accumulated):
        places = range(update, update + accumulated)
        for is_text in (True, False):
            passes = [f for process in made for one in places for f in process[one] if f.is_text == is_text]
            kind = Texts if is_text else Pictures
            rows = [
                (turn, advantage)
                for process in batches
                for one in places
                for sample, advantage in zip(process[one].trajectories, process[one].advantages, strict=True)
                for turn in sample.turns
                if isinstance(turn, kind)
            ]
            if not rows:
                assert not any(forward.places for forward in passes)
                continue
            longest = max(turn.width for turn, _ in rows)
            found = sum(f.weight * mean_of(f, how) for f in passes if f.places) / (processes * accumulated)
            expected = mean_of_rows(rows, how, longest)
            assert found == pytest.approx(float(expected), rel=1e-12)


def mean_of(forward, how: str) -> float:
    rows = list(zip(forward.turns, forward.advantages, strict=True))
    return float(mean_of_rows(rows, how, max(turn.width for turn, _ in rows)))


def mean_of_rows(rows, how: str, longest: int) -> Fraction:
    """The mean over rows all of whose elements are the advantage."""
    sums = [(Fraction(int(advantage)) * turn.elements, turn.elements) for turn, advantage in rows]
    if how == "sample":
        return sum(total / count for total, count in sums) / len(sums)
    if how == "constant":
        return sum(total / longest for total, _ in sums) / len(sums)
    return sum(total for total, _ in sums) / sum(count for _, count in sums)


def test_texts_of_any_length_and_pictures_are_joined_with_padding_that_counts_nothing():
    rows = joined([text(2, prefix=5, pictures=3), text(4, prefix=2)])
    assert rows.tokens.tolist() == [[1, 2, 0, 0], [1, 2, 3, 4]]
    assert rows.mask.tolist() == [[True, True, False, False], [True] * 4]
    assert rows.prompt.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 0, 0], [0, 0, 0, 1, 2, 3, 4, 5, 6]]
    assert rows.prompt.attention_mask.tolist() == [[1] * 7 + [0] * 2, [0] * 3 + [1] * 6]
    assert [len(bits) for bits in rows.prompt.visual_bits] == [3, 0]
    assert rows.elements == 6
    assert rows.row(1).drawn.shape == (1, 4)
    plain = joined([picture(4), picture(4)])
    assert plain.prompt.visual_bits is None
    assert plain.drawn.uncond is None


def sample(name: str) -> SimpleNamespace:
    """Of the prompt that the first letter says."""
    return SimpleNamespace(sample=SimpleNamespace(record=SimpleNamespace(id=name[0])), name=name)


def test_samples_of_a_prompt_stand_together_within_an_update():
    updates = [["a1", "b2", "a3"], ["b4", "c5", "a6"], ["b7", "a8", "b9"], ["a10", "b11", "c12"]]
    batches = [
        TrainBatch([sample(name) for name in batch], torch.tensor([float(name[1:]) for name in batch]))
        for batch in updates
    ]
    found = in_whole_groups(batches, 2)
    assert [[one.name for one in batch.trajectories] for batch in found] == [
        ["a1", "a3", "a6"],
        ["b2", "b4", "c5"],
        ["b7", "b9", "b11"],
        ["a8", "a10", "c12"],
    ]
    for batch in found:  # each with its own advantage
        assert [float(one.name[1:]) for one in batch.trajectories] == batch.advantages.tolist()
