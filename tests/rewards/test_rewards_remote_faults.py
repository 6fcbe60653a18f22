"""The reward `remote` against servers that answer badly, late or not at all: no score is invented, nothing hangs."""

import asyncio
import itertools
import math
import time

import numpy as np
import pytest
import torch
from support.hostile_server import hostile_server, silent_server
from support.numbered_batch import DEADLINE, ENOUGH, make_batch, score
from support.red_server import LISTING, answer_of, good, reds, suite_of

from rewards import RewardError
from rewards.remote.reward import Remote
from rewards.remote.servers import ServerError
from uniar.errors import UserError


def on_the_second(bad):
    """Good answers but to the request that has prompt 2: samples 2 and 3 of six."""

    def answer(request):
        if any(sample["prompt"] == "prompt 2" for sample in request.content["samples"]):
            bad(request)
        else:
            good(request)

    return answer


def half(request):
    request.send(answer_of(reds(request.content)[:1]))


BAD = {
    # What the server does with the request for samples 2 and 3 → which of them fail, and what is said of the first.
    "slow": (lambda r: time.sleep(2.5), (2, 3), r"did not answer within .*the deadline has passed"),
    "drips": (lambda r: r.drip(2.5), (2, 3), "did not answer within 0.5 s"),
    "drops": (lambda r: r.drop(), (2, 3), "broke the connection off"),
    "dies midway": (lambda r: r.send(b'{"scores": {"red": [2', length=100), (2, 3), "broke the connection off"),
    "500": (lambda r: r.send({"error": "it failed."}, 500), (2, 3), "answered 500: it failed"),
    "502": (lambda r: r.send(b"<html>bad gateway</html>", 502), (2, 3), "answered 502: <html>bad gateway</html>"),
    "503": (lambda r: r.send(b"", 503), (2, 3), "answered 503"),
    "403": (lambda r: r.send({"error": "not you"}, 403), (2, 3), "answered 403: not you"),
    "404": (lambda r: r.send({"detail": "Not Found"}, 404), (2, 3), 'answered 404: {"detail": "Not Found"}'),
    "redirect": (lambda r: r.send(b"", 307, [("Location", "http://127.0.0.1:9/")]), (2, 3), "answered 307"),
    "flood": (lambda r: r.flood(40 * 2**20), (2, 3), "answered with more than"),
    "no JSON": (lambda r: r.send(b"scores: 2, 3"), (2, 3), "the answer is not JSON"),
    "deep JSON": (lambda r: r.send(b"[" * 100_000), (2, 3), "the answer is not JSON"),
    "other JSON": (lambda r: r.send([2, 3]), (2, 3), "the answer has no scores of reward 'red'"),
    "null": (lambda r: r.send(None), (2, 3), "the answer has no scores"),
    "another reward": (lambda r: r.send({"scores": {"blue": [2, 3]}}), (2, 3), "the answer has no scores"),
    "no failures": (lambda r: r.send({"scores": {"red": [2, 3]}}), (2, 3), "the answer has no failures"),
    "half": (half, (2, 3), "the answer has 1 scores for 2 samples"),
    "too many": (lambda r: r.send(answer_of([2, 3, 4])), (2, 3), "the answer has 3 scores for 2 samples"),
    "a number": (lambda r: r.send(answer_of(2)), (2, 3), "the answer has no scores"),
    "NaN": (lambda r: r.send(answer_of([math.nan, 3])), (2,), "the server answered nan, a finite number or null"),
    "infinity": (lambda r: r.send(answer_of([2, -math.inf])), (3,), "the server answered -inf"),
    "huge": (lambda r: r.send(answer_of([2, 10**400])), (3,), "the server answered a huge number"),
    "text": (lambda r: r.send(answer_of(["2", 3])), (2,), "the server answered '2'"),
    "true": (lambda r: r.send(answer_of([2, True])), (3,), "the server answered True"),
    "list": (lambda r: r.send(answer_of([[2], 3])), (2,), "the server answered a list of 1 entries"),
    "failed there": (lambda r: r.send(answer_of([2, None], {"1": "raised KeyError"})), (3,), "raised KeyError"),
    "failed and scored": (lambda r: r.send(answer_of([2, 3], {"1": "raised KeyError"})), (3,), "raised KeyError"),
    "failed, oddly": (lambda r: r.send(answer_of([2, 3], {"0": ["x"]})), (2,), "for a reason that is not a string"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_answer_fails_the_samples_it_was_for(case, caplog):
    bad, failed, message = BAD[case]
    with hostile_server(on_the_second(bad), LISTING) as server:
        timeout, deadline = (0.5, DEADLINE) if case in ("slow", "drips", "503") else (ENOUGH, ENOUGH)
        table, seconds = score(suite_of(server, on_error="skip", timeout=timeout, deadline=deadline), make_batch())
    expected = [math.nan if row in failed else float(row) for row in range(6)]
    torch.testing.assert_close(
        table.values.flatten(), torch.tensor(expected, dtype=torch.float64), equal_nan=True, rtol=0, atol=0
    )
    assert table.failures == {"judge": len(failed)}
    assert seconds < deadline + 2
    assert message.split(".*")[-1] in caplog.text


@pytest.mark.parametrize("case", ["slow", "drops", "500", "half", "NaN"])
def test_under_stop_a_bad_answer_ends_the_run_with_its_reason(case):
    bad, failed, message = BAD[case]
    started = time.monotonic()
    with hostile_server(on_the_second(bad), LISTING) as server, pytest.raises(RewardError, match=message) as caught:
        score(suite_of(server), make_batch())
    assert (caught.value.index, caught.value.prompt) == (failed[0], f"prompt {failed[0]}")
    assert str(caught.value).startswith("reward 'judge' failed: ")
    assert time.monotonic() - started < DEADLINE + 2


@pytest.mark.parametrize(
    ("case", "attempts"),
    [("500", 3), ("502", 3), ("drops", 3), ("dies midway", 3), ("403", 1), ("404", 1), ("no JSON", 1), ("half", 1)],
)
def test_only_what_another_attempt_may_mend_is_tried_again(case, attempts):
    bad, _, _ = BAD[case]
    with hostile_server(bad, LISTING) as server:
        table, _ = score(suite_of(server, on_error="skip", deadline=ENOUGH), make_batch(2))
    assert table.values.isnan().all()
    assert len(server.posts) == attempts


def test_each_further_attempt_waits_longer_by_chance_between_half_and_all_of_its_time(monkeypatch):
    """Also where the server says that it is well."""
    times, drawn = [], []

    def broken(request):
        times.append(time.monotonic())
        request.send({"error": "no"}, 500)

    monkeypatch.setattr("rewards.remote.servers.random.uniform", lambda low, high: drawn.append((low, high)) or high)
    with hostile_server(broken, LISTING) as server:
        score(suite_of(server, on_error="skip", attempts=4, deadline=ENOUGH), make_batch(2))
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert [gap >= least for gap, least in zip(gaps, (0.25, 0.5, 1.0), strict=True)] == [True] * 3
    assert drawn == [(0.5, 1.0)] * 4
    assert server.gets.count("/health") == 3


def test_a_request_that_is_refused_for_one_sample_costs_only_that_sample():
    def picky(request):
        if any(sample["prompt"] == "prompt 1" for sample in request.content["samples"]):
            request.send({"error": "samples[1].image has too many pixels."}, 413)
        else:
            good(request)

    with hostile_server(picky, LISTING) as server:
        table, _ = score(suite_of(server, on_error="skip", batch_size=4, deadline=ENOUGH), make_batch(4))
    assert [math.isnan(value) for value in table.values.flatten()] == [False, True, False, False]
    assert table.failures == {"judge": 1}


@pytest.mark.parametrize(
    "value", [object(), math.nan, -math.inf, [1, {"deep": math.nan}], np.float32("nan"), {(1, 2): 3}, b"bytes"]
)
def test_metadata_that_cannot_be_sent_fails_its_sample_alone(value, caplog):
    batch = make_batch(4, metadata=[{}, {"fine": 1, "when": value}, {}, {}])
    with hostile_server(good, LISTING) as server:
        table, _ = score(suite_of(server, on_error="skip", batch_size=4), batch)
    assert [math.isnan(value) for value in table.values.flatten()] == [False, True, False, False]
    assert table.values[[0, 2, 3], 0].tolist() == [0, 2, 3]
    assert "metadata 'when' of sample 0 cannot be sent as JSON" in caplog.text


def test_numbers_of_numpy_and_torch_are_sent_as_numbers():
    metadata = [{"a": np.float32(0.5), "b": np.arange(2), "c": torch.ones(1), "d": (1, None)}]
    with hostile_server(good, LISTING) as server:
        score(suite_of(server), make_batch(1, metadata=metadata))
    assert server.posts[0]["samples"][0]["metadata"] == {"a": 0.5, "b": [0, 1], "c": [1.0], "d": [1, None]}


def test_samples_that_are_compared_are_not_sent_without_the_one_that_cannot_be():
    batch = make_batch(3, metadata=[{}, {"when": math.nan}, {}])
    with hostile_server(good, {"rewards": [{"name": "red", "pointwise": False}]}) as server:
        table, _ = score(suite_of(server, on_error="skip"), batch)
    assert table.values.isnan().all()
    assert server.posts == []


def test_silence_ends_at_the_deadline():
    """Connections are accepted, and nobody ever reads from them."""
    with silent_server() as url:
        reward = Remote(url, "red", deadline=1.0, timeout=60)
        reward._loaded = True  # what is served cannot be asked here
        started = time.monotonic()
        results = asyncio.run(reward.score(make_batch(20)))
        seconds = time.monotonic() - started
    assert len(results) == 20
    assert all(isinstance(result, ServerError) for result in results)
    assert 0.9 < seconds < 3


def test_a_silent_server_is_found_when_loading(monkeypatch):
    monkeypatch.setattr("rewards.remote.servers._HEALTH_SECONDS", 0.5)
    with silent_server() as url:
        started = time.monotonic()
        with pytest.raises(UserError, match=r"did not answer within 0\.5 s"):
            Remote(url).load()
        assert time.monotonic() - started < 5
