"""Scoring beside decoding: what overlaps, and that nothing else changes."""

import dataclasses
import json
import threading
import time
from contextlib import contextmanager, nullcontext

import pytest
import torch
from support.hostile_server import hostile_server
from support.served_rewards import running
from support.training_runs import SMALL_DRAWING

from rewards import Reward, RewardError, RewardSpec, RewardSuite
from rewards.serving.server import create_app
from rl.config.recipe import recipe_from_mapping
from rl.data.prompts import PromptRecord
from rl.policy.completion import Completion
from rl.policy.samples import Sample
from rl.scoring import pipeline
from rl.scoring.decoding import decode
from rl.scoring.groups import reward_batch
from rl.scoring.pipeline import SMALLEST_CHUNK, chunk_size, decode_and_score
from rl.train import train
from uniar.conversations import Drawing

SETTINGS = dataclasses.replace(SMALL_DRAWING, decode_batch_size=4)
COUNT = 2 * SMALLEST_CHUNK + 3  # three chunks, the last one smaller
PATIENCE = 60  # seconds after which something that should happen beside another thing does not
SAMPLES = [Sample(PromptRecord(f"prompt {n}", task="ab"[n % 2], id=str(n // 4)), n % 4) for n in range(COUNT)]


@pytest.fixture(scope="module")
def drawings(nano_decoder):
    shape = (COUNT, 4, *nano_decoder.bsq_encoder.config.code_shape)
    bits = torch.randint(0, 2, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return [Drawing(one, rows=2) for one in bits]


class Relay:
    """Decoding waits for the scoring of the chunk before to begin, and that scoring for the decoding of the next chunk.
    Neither would ever end, if one came after the other."""

    def __init__(self, decoder, monkeypatch):
        self.decodings = [threading.Event() for _ in range(4)]
        self.scorings = [threading.Event() for _ in range(4)]
        self.decoded = self.scored = 0
        self.together = []

        def decoding(*arguments, **options):
            chunk, self.decoded = self.decoded, self.decoded + 1
            self.decodings[chunk].set()
            if chunk > 0:
                self.together.append(self.scorings[chunk - 1].wait(PATIENCE))
            return decode(*arguments, **options)

        monkeypatch.setattr(pipeline, "decode", decoding)

    def scoring(self):
        """Called by a reward when it has a chunk before it."""
        chunk, self.scored = self.scored, self.scored + 1
        self.scorings[chunk].set()
        if chunk < 2:
            self.together.append(self.decodings[chunk + 1].wait(PATIENCE))


def run(decoder, drawings, suite, **options):
    made = [Completion(drawing) for drawing in drawings]
    return decode_and_score(decoder, made, SAMPLES, SETTINGS, suite, nullcontext(), None, **options)


def test_a_chunk_is_scored_while_the_next_is_decoded(nano_decoder, drawings, monkeypatch):
    relay = Relay(nano_decoder, monkeypatch)

    class Here(Reward):
        def score(self, batch):
            relay.scoring()
            return [float(prompt.split()[1]) for prompt in batch.prompts]

    _, table = run(nano_decoder, drawings, RewardSuite([RewardSpec(Here)]))
    assert relay.together == [True] * 4
    assert table.values.flatten().tolist() == list(range(COUNT))


def test_a_server_scores_a_chunk_while_the_next_is_decoded(nano_decoder, drawings, monkeypatch):
    relay = Relay(nano_decoder, monkeypatch)

    def answer(request):
        relay.scoring()
        scores = [float(sample["prompt"].split()[1]) for sample in request.content["samples"]]
        request.send({"scores": {"red": scores}, "failures": {"red": {}}, "details": {"red": {}}})

    with hostile_server(answer, {"rewards": [{"name": "red", "pointwise": True}]}) as server:
        entry = {"use": "remote", "url": server.url, "batch_size": 8, "timeout": 2 * PATIENCE, "attempts": 1}
        suite = RewardSuite.from_recipe([entry])
        _, table = run(nano_decoder, drawings, suite)
        suite.close()
    assert relay.together == [True] * 4
    assert table.values.flatten().tolist() == list(range(COUNT))


class Compared(Reward):
    pointwise = False

    def score(self, batch):
        return [len(batch) - row for row in range(len(batch))]


class OnTheMainThread(Reward):
    overlaps_decoding = False

    def score(self, batch):
        assert threading.current_thread() is threading.main_thread()
        assert len(batch) == COUNT
        return [float(bits.sum()) for bits in batch.bits]


class Polled(Reward):
    wants_policy = True

    def bind(self, policy, processor):
        self.policy = policy

    def score(self, batch):
        assert threading.current_thread() is threading.main_thread()
        return [self.policy] * len(batch)


def dull(prompts, images, task):
    """Says more of some samples, and nothing of others."""
    return [{"score": 1.0, "why": prompt} if t == "a" else 2.0 for prompt, t in zip(prompts, task, strict=True)]


def test_it_is_what_decoding_first_and_scoring_then_gives(nano_decoder, drawings):
    entered = []

    @contextmanager
    def policy():
        entered.append("policy")
        yield 7.0

    @contextmanager
    def phase(name):
        entered.append(name)
        yield
        entered.append(f"end of {name}")

    rewards = [RewardSpec(each) for each in (Compared, OnTheMainThread, Polled, dull)]
    rewards += [RewardSpec("compressibility"), RewardSpec("color", tasks=("b",), params={"color": "red"})]
    suite = RewardSuite(rewards)
    made = [Completion(drawing) for drawing in drawings]
    images, table = decode_and_score(nano_decoder, made, SAMPLES, SETTINGS, suite, policy(), None, phase=phase, step=3)
    assert entered == ["decode", "end of decode", "reward", "policy", "end of reward"]
    expected = decode(nano_decoder, drawings, SAMPLES, SETTINGS, step=3)
    assert [image.tobytes() for image in images] == [image.tobytes() for image in expected]
    with suite.bound(nullcontext(7.0), None):
        whole = suite.score(reward_batch(SAMPLES, expected, made))
    # But for the reward that compares samples, which gets a prompt's samples at a time, here 4, and of the last one 3.
    whole.column("Compared")[:] = torch.tensor([4.0, 3, 2, 1] * 4 + [3, 2, 1])
    torch.testing.assert_close(table.values, whole.values, equal_nan=True, rtol=0, atol=0)
    assert torch.equal(table.weights, whole.weights)
    assert (table.names, table.failures, table.details) == (whole.names, whole.failures, whole.details)
    assert table.details["dull"][:3] == [{"why": "prompt 0"}, None, {"why": "prompt 2"}]
    assert all(table.seconds[name] > 0 for name in table.names)


def test_a_failure_stops_the_decoding_and_names_the_sample(nano_decoder, drawings, monkeypatch):
    decoded, failed = [], threading.Event()

    def slowly(*arguments, **options):
        decoded.append(len(arguments[2]))
        if len(decoded) > 2:
            assert failed.wait(PATIENCE)
            time.sleep(0.2)  # for the exception to get from the reward to where it is looked for
        return decode(*arguments, **options)

    class Picky(Reward):
        def score(self, batch):
            if "prompt 5" in batch.prompts:
                failed.set()
                raise ValueError("not that one")
            return [0.0] * len(batch)

    monkeypatch.setattr(pipeline, "decode", slowly)
    monkeypatch.setattr(pipeline, "SMALLEST_CHUNK", 4)
    with pytest.raises(RewardError, match="not that one") as caught:
        run(nano_decoder, drawings, RewardSuite([RewardSpec(Picky, retries=0)]))
    assert (caught.value.index, caught.value.prompt) == (5, "prompt 5")
    assert len(decoded) < -(-COUNT // 4)
    assert not any(thread.name.startswith("scoring") for thread in threading.enumerate())


def test_chunks_are_whole_decoder_batches():
    assert [chunk_size(size) for size in (1, 3, 4, 8, 9, 64)] == [8, 9, 8, 8, 9, 64]


# In a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(nano_checkpoint, tmp_path):
    """Of one update; tests choose the rewards."""
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a red square"}\n{"prompt": "a blue circle"}\n')
    return {
        "model": {"path": str(nano_checkpoint), "dtype": "float32"},
        "data": {"prompts": str(tmp_path / "prompts.jsonl")},
        "rollout": {"height": 64, "width": 64, "samples_per_prompt": 4, "guidance": "none", "guidance_scale": 1.0},
        "decode": {"num_inference_steps": 1, "batch_size": 4},
        "trainer": {"max_steps": 1, "per_device_train_batch_size": 8, "gradient_checkpointing": False},
        "output_dir": str(tmp_path / "run"),
    }


def test_a_run_trains_on_a_served_reward_as_on_its_own(recipe):
    def of_step_1(entry, folder):
        folder = train(recipe_from_mapping({**recipe, "rewards": [entry], "output_dir": folder}))
        [line] = [line for line in folder.read() if "reward" in line]
        return {name: line[name] for name in ("reward", "rewards/red/mean", "rewards/red/failed", "loss", "grad_norm")}

    red = {"use": "color", "color": "red", "softness": 0.5, "name": "red"}
    with running(create_app(RewardSuite.from_recipe([red]))) as url:
        served = of_step_1({"use": "remote", "url": url, "name": "red"}, recipe["output_dir"] + "-served")
    assert served == of_step_1(red, recipe["output_dir"])
    assert served["rewards/red/mean"] > 0


def test_a_server_that_fails_midway_ends_the_run_or_costs_its_samples(recipe):
    def answer(request):
        if request.number > 1:
            request.send({"error": "out of memory"}, 500)
        else:
            scores = list(range(len(request.content["samples"])))
            request.send({"scores": {"red": scores}, "failures": {"red": {}}, "details": {"red": {}}})

    entry = {"use": "remote", "name": "red", "batch_size": 4, "concurrency": 1, "attempts": 2}
    listing = {"rewards": [{"name": "red", "pointwise": True}]}
    with hostile_server(answer, listing) as server, pytest.raises(RewardError, match=r"'red' failed: .* out of memory"):
        train(recipe_from_mapping({**recipe, "rewards": [{**entry, "url": server.url}]}))
    with hostile_server(answer, listing) as server:
        skipping = {**entry, "url": server.url, "on_error": "skip"}
        folder = train(
            recipe_from_mapping({**recipe, "rewards": [skipping], "output_dir": recipe["output_dir"] + "-skipping"})
        )
    [line] = [line for line in folder.read() if "reward" in line]
    assert (line["rewards/red/failed"], line["rewards/red/mean"]) == (4, 1.5)
    assert json.dumps(line)  # no NaN where a number has to be
