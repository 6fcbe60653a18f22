"""The reward `remote` against servers that are good, slow, broken or gone: no score is invented, nothing hangs."""

import asyncio
import itertools
import math
import socket
import threading
import time

import pytest
import torch
from hostile_server import free_port, hostile_server
from PIL import Image

from rewards import Reward, RewardBatch, RewardError, RewardSpec, RewardSuite
from rewards.contract import read_scores
from rewards.remote import Remote
from rewards.server import create_app, running
from rewards.servers import ServerError, ServerPool
from uniar.errors import UserError

LISTING = {"rewards": [{"name": "red", "pointwise": True}], "limits": {}}
DEADLINE = 1.5
ENOUGH = 30  # seconds, where the deadline is not what a test is about


def make_batch(count=6, **entries):
    images = [Image.new("RGB", (4, 4), (index, 0, 0)) for index in range(count)]
    return RewardBatch([f"prompt {index}" for index in range(count)], images, **entries)


def reds(content):
    """What a good server answers to `make_batch`: the number in the prompt."""
    return [float(sample["prompt"].split()[1]) for sample in content["samples"]]


def answer_of(scores, failures=None, details=None):
    return {"scores": {"red": scores}, "failures": {"red": failures or {}}, "details": {"red": details or {}}}


def good(request):
    request.send(answer_of(reds(request.content)))


def suite_of(*servers, on_error="stop", **parameters):
    url = [server if isinstance(server, str) else server.url for server in servers]
    settings = {"deadline": DEADLINE, "timeout": 1.0, "batch_size": 2, "attempts": 3, **parameters}
    entry = {"use": "remote", "url": url[0] if len(url) == 1 else url, "reward": "red", "name": "judge", **settings}
    return RewardSuite.from_recipe([{**entry, "on_error": on_error}])


def score(suite, batch):
    """The table, and the seconds it took."""
    started = time.monotonic()
    try:
        return suite.score(batch), time.monotonic() - started
    finally:
        suite.close()


# A good server -------------------------------------------------------------------------------------------------------


class Red(Reward):
    def score(self, batch):
        if any(prompt == "prompt 3" for prompt in batch.prompts):
            raise ValueError("no threes")
        first = {"score": batch.images[0].getpixel((0, 0))[0], "why": "it is first"}
        return [first, *(None if p == "prompt 4" else float(p.split()[1]) for p in batch.prompts[1:])]


class Spread(Reward):
    """Each sample's red above the batch's mean: depends on the whole batch."""

    pointwise = False

    def score(self, batch):
        reds = torch.tensor([float(image.getpixel((0, 0))[0]) for image in batch.images])
        return reds - reds.mean()


def test_a_served_reward_gives_what_it_gives_here():
    suite = RewardSuite([RewardSpec(Red, name="red", on_error="skip", retries=0), RewardSpec(Spread, name="spread")])
    batch = make_batch(7)
    with running(create_app(suite)) as url:
        remote = RewardSuite.from_recipe(
            [
                {"use": "remote", "url": url, "reward": name, "name": name, "on_error": "skip", "batch_size": 7}
                for name in suite.names
            ]
        )
        table, expected = remote.score(batch), suite.score(batch)
        remote.close()
    torch.testing.assert_close(table.values, expected.values, equal_nan=True, rtol=0, atol=0)
    assert table.failures == expected.failures == {"red": 1, "spread": 0}
    assert table.details == expected.details
    assert not remote.rewards[1].pointwise  # as the server says, so that it is never given a part of a batch


def test_a_reward_that_compares_samples_gets_the_whole_batch_in_one_request():
    with running(create_app(RewardSuite([RewardSpec(Spread, name="red")]))) as url:
        table, _ = score(suite_of(url, batch_size=1), make_batch(5))
    assert table.values.flatten().tolist() == [-2, -1, 0, 1, 2]


def test_results_come_in_order_whatever_the_order_of_the_answers():
    def later_first(request):
        time.sleep(0.3 / request.number)
        good(request)

    with hostile_server(later_first, LISTING) as server:
        table, _ = score(suite_of(server, concurrency=8), make_batch(16))
    assert table.values.flatten().tolist() == list(range(16))
    assert len(server.posts) == 8


def test_bits_are_sent_only_when_asked_for():
    bits = torch.ones(2, 1, 1, 1, 4, dtype=torch.uint8)
    for send_bits in (True, False):
        with hostile_server(good, LISTING) as server:
            score(suite_of(server, send_bits=send_bits), make_batch(2, bits=bits))
        assert ["bits" in sample for post in server.posts for sample in post["samples"]] == [send_bits] * 2


def test_the_token_is_read_from_the_environment_and_sent(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "open sesame, please")
    with hostile_server(good, LISTING) as server:
        score(suite_of(server, token_env="MY_TOKEN"), make_batch(1))
    assert server.headers[0]["Authorization"] == "Bearer open sesame, please"


def test_connections_are_kept_between_batches():
    with hostile_server(good, LISTING) as server:
        suite = suite_of(server, concurrency=1)
        for _ in range(5):
            assert suite.score(make_batch()).values.flatten().tolist() == list(range(6))
        suite.close()
    assert len(server.posts) == 15
    assert server.connections <= 3  # one to ask what is served, one for requests; one more if that was closed early


def test_no_more_requests_at_a_time_than_allowed():
    def slow(request):
        time.sleep(0.05)
        good(request)

    with hostile_server(slow, LISTING) as server:
        score(suite_of(server, concurrency=3, batch_size=1, deadline=ENOUGH), make_batch(16))
    assert server.most_at_a_time <= 3


def test_it_works_from_any_event_loop_and_after_it_was_closed():
    with hostile_server(good, LISTING) as server:
        suite = suite_of(server)
        [reward] = suite.rewards
        for _ in range(2):
            assert asyncio.run(reward.score(make_batch(2))) == [0, 1]
            assert suite.score(make_batch(2)).values.flatten().tolist() == [0, 1]
            suite.close()


# Several servers -----------------------------------------------------------------------------------------------------


def test_load_is_spread_over_servers():
    def slow(request):
        time.sleep(0.05)
        good(request)

    with (
        hostile_server(slow, LISTING) as one,
        hostile_server(slow, LISTING) as two,
        hostile_server(slow, LISTING) as six,
    ):
        table, _ = score(suite_of(one, two, six, batch_size=1, concurrency=2, deadline=ENOUGH), make_batch(30))
    assert table.values.flatten().tolist() == list(range(30))
    assert min(len(server.posts) for server in (one, two, six)) >= 5


def test_a_server_that_fails_is_left_alone_and_the_others_do_its_work():
    def broken(request):
        request.send({"error": "out of memory"}, 500)

    with hostile_server(broken, LISTING) as bad, hostile_server(good, LISTING) as well:
        bad.well = False
        table, _ = score(suite_of(bad, well, batch_size=1, concurrency=1, deadline=ENOUGH), make_batch(30))
    assert table.values.flatten().tolist() == list(range(30))
    assert table.failures == {"judge": 0}
    assert len(bad.posts) <= 2  # it is asked for its health before it is asked again


def test_a_server_that_recovers_gets_requests_again():
    answered = threading.Event()

    def once_broken(request):
        if request.number == 1:
            request.drop()
        else:
            answered.set()
            good(request)

    with hostile_server(once_broken, LISTING) as server:
        table, _ = score(suite_of(server, deadline=ENOUGH), make_batch(2))
    assert table.values.flatten().tolist() == [0, 1]
    assert answered.is_set()
    assert "/health" in server.gets


def test_a_server_that_cannot_be_reached_is_done_without():
    with hostile_server(good, LISTING) as server:
        table, _ = score(suite_of(f"http://127.0.0.1:{free_port()}", server, deadline=ENOUGH), make_batch())
    assert table.values.flatten().tolist() == list(range(6))


def test_a_busy_server_is_asked_again_when_it_said():
    times = []

    def busy_at_first(request):
        times.append(time.monotonic())
        if request.number == 1:
            request.send({"error": "busy"}, 429, [("Retry-After", "1")])
        else:
            good(request)

    with hostile_server(busy_at_first, LISTING) as server:
        table, _ = score(suite_of(server, deadline=ENOUGH), make_batch(2))
    assert table.values.flatten().tolist() == [0, 1]
    assert times[1] - times[0] >= 0.5
    assert "/health" not in server.gets  # it is well


def test_all_servers_die_midway():
    def last_words(request):
        if request.number > 2:
            stop.start()
            request.drop()
        else:
            good(request)

    with hostile_server(last_words, LISTING) as server:
        own_stop, server.stop = server.stop, lambda: None  # once is enough
        stop = threading.Thread(target=own_stop)
        table, seconds = score(suite_of(server, on_error="skip", concurrency=1), make_batch(8))
    values = table.values.flatten()
    assert values[:4].tolist() == [0, 1, 2, 3]
    assert values[4:].isnan().all()
    assert table.failures == {"judge": 4}
    assert seconds < DEADLINE + 3


# Bad answers ---------------------------------------------------------------------------------------------------------


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
    "slow": (lambda r: time.sleep(2.5), (2, 3), r"did not answer within 1 s.*the deadline has passed"),
    "drips": (lambda r: r.drip(2.5), (2, 3), "did not answer within 1 s"),
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
    "failed, oddly": (lambda r: r.send(answer_of([2, 3], {"0": ["x"]})), (2,), "for a reason that is no text"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_answer_fails_the_samples_it_was_for(case, caplog):
    bad, failed, message = BAD[case]
    with hostile_server(on_the_second(bad), LISTING) as server:
        deadline = DEADLINE if case in ("slow", "drips") else ENOUGH
        table, seconds = score(suite_of(server, on_error="skip", deadline=deadline), make_batch())
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

    monkeypatch.setattr("rewards.servers.random.uniform", lambda low, high: drawn.append((low, high)) or high)
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


def test_metadata_that_cannot_be_sent_fails_its_samples():
    batch = make_batch(4, metadata=[{}, {"when": object()}, {}, {}])
    with hostile_server(good, LISTING) as server:
        table, _ = score(suite_of(server, on_error="skip"), batch)
    assert [math.isnan(value) for value in table.values.flatten()] == [True, True, False, False]


def test_silence_ends_at_the_deadline():
    """Connections are accepted, and nobody ever reads from them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        reward = Remote(f"http://127.0.0.1:{listener.getsockname()[1]}", "red", deadline=1.0, timeout=60)
        reward._loaded = True  # what is served cannot be asked here
        started = time.monotonic()
        results = asyncio.run(reward.score(make_batch(20)))
        seconds = time.monotonic() - started
    assert len(results) == 20
    assert all(isinstance(result, ServerError) for result in results)
    assert 0.9 < seconds < 3


def test_a_silent_server_is_found_when_loading(monkeypatch):
    monkeypatch.setattr("rewards.servers._HEALTH_SECONDS", 0.5)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        started = time.monotonic()
        with pytest.raises(UserError, match=r"did not answer within 0\.5 s"):
            Remote(f"http://127.0.0.1:{listener.getsockname()[1]}").load()
        assert time.monotonic() - started < 5


# Parameters and loading ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"url": "127.0.0.1:8000"}, "is no server; http://host:port"),
        ({"url": "ftp://a"}, "is no server"),
        ({"url": "http://"}, "is no server"),
        ({"url": "http://a?b=c"}, "is no server"),
        ({"url": "http://me:secret@a"}, "use a token from the environment"),
        ({"url": []}, "at least one server, each once"),
        ({"url": ["http://a", "http://a/"]}, "at least one server, each once"),
        ({"url": 3}, "url is 3, a text or a list is needed"),
        ({"url": "http://a", "deadline": 0}, "deadline is 0 seconds"),
        ({"url": "http://a", "deadline": math.inf}, "deadline is inf seconds"),
        ({"url": "http://a", "timeout": -1}, "timeout is -1 seconds"),
        ({"url": "http://a", "batch_size": 0}, "batch_size is 0"),
        ({"url": "http://a", "attempts": 0}, "attempts is 0"),
        ({"url": "http://a", "concurrency": 0}, "concurrency is 0"),
        ({}, "parameter 'url' is missing"),
    ],
)
def test_parameters_that_cannot_work_are_refused(parameters, message):
    with pytest.raises(UserError, match=message):
        RewardSuite.from_recipe([{"use": "remote", **parameters}])


def test_a_secret_in_the_url_is_not_repeated():
    with pytest.raises(UserError) as caught:
        RewardSuite.from_recipe([{"use": "remote", "url": "http://me:secret@a"}])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("listing", "reward", "message"),
    [
        ({"rewards": [{"name": "read", "pointwise": True}]}, "red", "does not serve 'red'; served: read. Did you mean"),
        ({"rewards": [{"name": n, "pointwise": True} for n in "ab"]}, None, "serves a, b; say by 'reward' which"),
        ({"data": []}, "red", "is no reward server"),
        (["red"], "red", "is no reward server"),
        (401, "red", r"answered 401.*the token is read from UNIAR_REWARDS_TOKEN"),
        (404, "red", "answered 404"),
        (500, "red", "no reward server can be used: .* answered 500"),
    ],
)
def test_what_cannot_work_is_found_before_the_first_rollout(listing, reward, message):
    with hostile_server(good, listing) as server:
        suite = RewardSuite.from_recipe([{"use": "remote", "url": server.url, "reward": reward}])
        with pytest.raises(UserError, match=message):
            suite.load()


def test_a_server_that_is_not_there_is_found_before_the_first_rollout():
    suite = RewardSuite.from_recipe([{"use": "remote", "url": f"http://127.0.0.1:{free_port()}", "on_error": "skip"}])
    with pytest.raises(UserError, match=r"no reward server can be used: .* cannot be reached"):
        suite.load()


def test_the_only_reward_of_a_server_needs_no_name():
    with hostile_server(good, LISTING) as server:
        reward = Remote(server.url)
        reward.load()
    assert (reward.reward, reward.pointwise) == ("red", True)


# The contract --------------------------------------------------------------------------------------------------------


def test_an_exception_in_the_place_of_a_score_fails_that_sample():
    scores, faults = read_scores([1.0, ServerError("the judge left."), None, RuntimeError()], 4)
    assert scores[0] == 1.0
    assert all(math.isnan(score) for score in scores[1:])
    assert faults == {1: "failed: the judge left", 3: "failed: RuntimeError"}


def test_nothing_outlasts_its_deadline_in_the_pool():
    """Not even the wait for a free place, nor the making of a body."""

    async def ask():
        pool = ServerPool(f"http://127.0.0.1:{free_port()}", concurrency=1, attempts=100)
        loop = asyncio.get_running_loop()
        started = loop.time()
        asked = [pool.post("/", lambda: b"{}", started + 0.5) for _ in range(5)]
        asked.append(pool.post("/", lambda: time.sleep(1) or b"", started + 0.5))
        results = await asyncio.gather(*asked, return_exceptions=True)
        seconds = loop.time() - started
        await pool._client.aclose()
        return results, seconds

    results, seconds = asyncio.run(ask())
    assert all(isinstance(result, ServerError) for result in results)
    assert "the deadline has passed" in str(results[0])
    assert 0.4 < seconds < 1.5
