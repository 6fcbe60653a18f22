"""The pool of servers: which answers pass, how long a busy server rests, and what never leaves this machine."""

import asyncio
import itertools
import subprocess
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from support.hostile_server import hostile_server
from support.numbered_batch import ENOUGH, make_batch, score
from support.red_server import LISTING, good, suite_of

from rewards.remote.addresses import is_loopback, stays_here
from rewards.remote.servers import ServerError, ServerPool
from rewards.remote.statuses import is_passing, rest_asked_for, status_of


def well(request):
    request.send({})


def post(pool, seconds=ENOUGH, requests=1):
    """The results of some requests that are made at once, and how long they took."""

    async def ask():
        loop = asyncio.get_running_loop()
        started = loop.time()
        asked = [pool.post("/", lambda: b"{}", started + seconds) for _ in range(requests)]
        results = await asyncio.gather(*asked, return_exceptions=True)
        await pool._aclose()
        return results, loop.time() - started

    return asyncio.run(ask())


# Statuses ------------------------------------------------------------------------------------------------------------


def test_which_statuses_pass():
    passing = {status for status in range(300, 600) if is_passing(status)}
    assert passing == {408, 425, 429, *range(500, 600)}


@pytest.mark.parametrize("status", [408, 425, 429, 500, 501, 503, 507, 520, 524, 529, 599])
def test_a_state_that_passes_costs_nothing(status):
    def once(request):
        request.send({"error": "not now"}, status) if request.number == 1 else good(request)

    with hostile_server(once, LISTING) as server:
        table, _ = score(suite_of(server, deadline=ENOUGH), make_batch(2))
    assert table.values.flatten().tolist() == [0, 1]
    assert len(server.posts) == 2


@pytest.mark.parametrize(("code", "asked"), [(429, 2), (529, 2), (502, 2), (403, 1)])
def test_an_error_that_comes_as_200_has_its_own_status(code, asked):
    def routed(request):
        request.send({"error": {"message": "of the model behind", "code": code}}) if request.number == 1 else well(
            request
        )

    with hostile_server(routed, LISTING) as server:
        [found], _ = post(ServerPool(server.url))
    assert len(server.posts) == asked
    assert found == b"{}" if asked == 2 else (found.status, "of the model behind" in str(found)) == (code, True)
    for body in (
        b"{}",
        b"",
        b'{"error": null}',
        b'{"error": {"code": "429"}}',
        b'["error"]',
        b'{"error": {"code": 200}}',
    ):
        assert status_of(200, body) == 200
    assert status_of(503, b'{"error": {"code": 400}}') == 503


@pytest.mark.parametrize("status", [401, 403, 404, 405, 409, 410, 418, 422, 451, 499])
def test_a_state_that_does_not_pass_is_final(status):
    with hostile_server(lambda request: request.send({"error": "no"}, status), LISTING) as server:
        [error], seconds = post(ServerPool(server.url))
    assert isinstance(error, ServerError)
    assert error.status == status
    assert len(server.posts) == 1
    assert seconds < 5


NOW = "Tue, 03 Feb 2026 04:05:06 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": " 2.5 "}, 2.5),
        ({"retry-after": "3600"}, 60),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"x-ms-retry-after-ms": "40"}, 0.04),
        ({"retry-after": "Tue, 03 Feb 2026 04:05:26 GMT", "date": NOW}, 20),
        ({"retry-after": "Tuesday, 03-Feb-26 04:05:16 GMT", "date": NOW}, 10),
        ({"retry-after": NOW}, None),  # past
        *[({"retry-after": text}, None) for text in ("", "0", "-1", "nan", "inf", "1e3", "soon", "٣", "9" * 400)],
        ({}, None),
    ],
)
def test_how_long_a_server_asks_to_be_left_alone(headers, seconds):
    assert rest_asked_for(headers) == seconds


def test_a_date_without_the_servers_clock_is_read_by_ours():
    text = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 28 < rest_asked_for({"retry-after": text}) <= 30


# Busy ----------------------------------------------------------------------------------------------------------------


def test_a_busy_server_that_says_nothing_rests_longer_each_time_and_costs_no_attempts(monkeypatch):
    times = []

    def busy(request):
        times.append(time.monotonic())
        request.send({"error": "slow down"}, 429) if request.number <= 6 else good(request)

    monkeypatch.setattr("rewards.remote.servers.random.uniform", lambda low, high: high)
    monkeypatch.setattr("rewards.remote.servers._COOLDOWN_SECONDS", (0.05, 0.4))
    with hostile_server(busy, LISTING) as server:
        table, _ = score(suite_of(server, attempts=1, deadline=ENOUGH), make_batch(2))
    assert table.values.flatten().tolist() == [0, 1]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    least = [0.05, 0.1, 0.2, 0.4, 0.4, 0.4]
    assert [gap >= rest for gap, rest in zip(gaps, least, strict=True)] == [True] * 6
    assert "/health" not in server.gets


def test_a_server_that_stays_busy_is_left_at_the_deadline():
    with hostile_server(lambda request: request.send({"error": "overloaded"}, 529), LISTING) as server:
        [error], seconds = post(ServerPool(server.url, attempts=1), seconds=1.5)
    assert "answered 529: overloaded; the deadline has passed" in str(error)
    assert 1.4 < seconds < 3
    assert 2 <= len(server.posts) <= 6  # not without rest


def test_a_busy_server_gets_fewer_requests_at_a_time():
    """It takes 8 per second, whatever it is asked; asked by 16 at a time, most requests would only be refused."""
    lock, taken = threading.Lock(), []

    def limited(request):
        with lock:
            now = time.monotonic()
            full = sum(now - other < 1 for other in taken) >= 8
            if not full:
                taken.append(now)
        request.send({"error": "slow down"}, 429) if full else request.send({})

    with hostile_server(limited, LISTING) as server:
        results, _ = post(ServerPool(server.url, concurrency=16), requests=24)
    assert results == [b"{}"] * 24
    assert len(server.posts) < 24 + 40


def test_a_server_that_is_busy_when_it_is_asked_what_it_serves():
    with hostile_server(good, 429) as server:
        threading.Timer(0.7, setattr, (server, "listing", LISTING)).start()
        table, _ = score(suite_of(server, deadline=ENOUGH), make_batch(2))
    assert table.values.flatten().tolist() == [0, 1]
    assert 2 <= server.gets.count("/v1/rewards") <= 5


# Proxies -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "here"),
    [
        *[(host, True) for host in ("localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.0.0.2", "127.1")],
        *[(host, True) for host in ("::1", "[::1]", "::ffff:127.0.0.1", "0x7f.0.0.1")],
        *[
            (host, False)
            for host in ("10.0.0.1", "localhost.com", "mylocalhost", "128.0.0.1", "::2", "::ffff:10.0.0.1")
        ],
    ],
)
def test_loopback_addresses(host, here):
    assert is_loopback(host) is here
    assert stays_here(host) is here


def test_the_address_of_all_is_asked_here_but_served_to_all():
    assert [(stays_here(host), is_loopback(host)) for host in ("0.0.0.0", "::")] == [(True, False)] * 2


@pytest.mark.parametrize("no_proxy", ["", "10.255.255.1,.example"])
def test_only_requests_that_leave_this_machine_go_through_a_proxy(monkeypatch, no_proxy):
    """The other server of the list is not reached but through the proxy, and with NO_PROXY not at all."""
    with hostile_server(well, LISTING) as proxy, hostile_server(well, LISTING) as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.setenv("NO_PROXY", no_proxy)
        monkeypatch.setenv("no_proxy", no_proxy)
        monkeypatch.setattr("rewards.remote.servers._HEALTH_SECONDS", 1.0)
        pool = ServerPool(
            ["http://10.255.255.1:81", server.url, server.url.replace("127.0.0.1", "localhost")], token="t" * 20
        )
        pool.get("/v1/rewards")
        results, _ = post(pool, requests=6, seconds=4)
    asked = [*proxy.gets, *proxy.paths]
    assert all(path.startswith("http://10.255.255.1:81/") for path in asked)
    assert bool(asked) is (no_proxy == "")
    assert server.gets == ["/v1/rewards"] * 2
    assert server.posts
    assert any(isinstance(result, bytes) for result in results)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_server_here_may_have_a_certificate_that_the_environment_names(monkeypatch, tmp_path, host):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=here"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    with hostile_server(well, LISTING, certificate=(certificate, key)) as server:
        url = server.url.replace("127.0.0.1", host)
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        [error], _ = post(ServerPool(url, attempts=1))
        assert "certificate" in str(error).lower()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        pool = ServerPool(url)
        assert isinstance(pool.get("/v1/rewards")[url], bytes)
        [answer], _ = post(pool)
    assert answer == b"{}"
    assert server.gets == ["/v1/rewards"]


def test_a_proxy_that_cannot_be_used_is_a_sentence(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "gopher://nowhere")
    monkeypatch.setenv("http_proxy", "gopher://nowhere")
    answers = ServerPool("http://10.255.255.1").get("/health")
    assert "cannot be asked with the environment's proxy" in str(answers["http://10.255.255.1"])
