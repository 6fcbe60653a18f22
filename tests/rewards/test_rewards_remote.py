"""The reward `remote` against servers that are good, slow, gone, or back again."""

import asyncio
import math
import threading
import time

import pytest
import torch
from support.hostile_server import free_port, hostile_server
from support.numbered_batch import DEADLINE, ENOUGH, make_batch, score
from support.red_server import LISTING, good, suite_of
from support.served_rewards import running

from rewards import Reward, RewardSpec, RewardSuite
from rewards.contract.protocol import read_scores
from rewards.remote.reward import Remote
from rewards.remote.servers import ServerError, ServerPool
from rewards.serving.server import create_app
from uniar.errors import UserError

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
        table, _ = score(suite_of(server, concurrency=8, timeout=ENOUGH, deadline=ENOUGH), make_batch(16))
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
    assert times[1] - times[0] >= 1
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


# Parameters and loading ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"url": "127.0.0.1:8000"}, "is not a server; http://host:port"),
        ({"url": "ftp://a"}, "is not a server"),
        ({"url": "http://"}, "is not a server"),
        ({"url": "http://a?b=c"}, "is not a server"),
        ({"url": "http://me:secret@a"}, "use a token from the environment"),
        ({"url": "http://a:99999"}, "has port 99999; a port is a number from 1 to 65535"),
        ({"url": ["http://a", "http://a:0/v1"]}, "has port 0"),
        ({"url": "http://a:-1"}, "has port -1"),
        ({"url": "http://a:80x"}, "is not a URL"),
        ({"url": "http://a b"}, "which is not a name or an address"),
        ({"url": "http://" + "a" * 64}, "is not a URL: .*label"),
        ({"url": []}, "at least one server, each once"),
        ({"url": ["http://a", "http://a/"]}, "at least one server, each once"),
        ({"url": 3}, "url is 3 .*, expected a string or a list of strings"),
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
    for url in ("http://me:secret@a", "http://me:secret@a:99999", "http://me:secret@[::1"):
        with pytest.raises(UserError) as caught:
            RewardSuite.from_recipe([{"use": "remote", "url": url}])
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("listing", "reward", "message"),
    [
        ({"rewards": [{"name": "read", "pointwise": True}]}, "red", "does not serve 'red'; served: read. Did you mean"),
        ({"rewards": [{"name": n, "pointwise": True} for n in "ab"]}, None, "serves a, b; say by 'reward' which"),
        ({"rewards": []}, "red", "serves no reward"),
        ({"rewards": []}, None, "serves no reward"),
        ({"rewards": {}}, None, "serves no reward"),
        ({"data": []}, "red", "is not a reward server"),
        ({"rewards": None}, None, "is not a reward server"),
        (["red"], "red", "is not a reward server"),
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
        await pool._aclose()
        return results, seconds

    results, seconds = asyncio.run(ask())
    assert all(isinstance(result, ServerError) for result in results)
    assert "the deadline has passed" in str(results[0])
    assert 0.4 < seconds < 1.5
