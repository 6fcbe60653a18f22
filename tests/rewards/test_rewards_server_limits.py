"""Deadlines, the log and the memory of the reward server, one at a time."""

import logging
import socket
import threading
import time

import httpx2
import pytest
from support.served_rewards import Gate, Red, post, running, sample, suite_of

from rewards.remote.wire_images import Limits
from rewards.serving.memory import Memory
from rewards.serving.server import create_app
from rewards.serving.sparse_log import Sparse

HEAD = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"


@pytest.fixture(scope="module")
def hasty():
    limits = Limits(head_seconds=0.5, body_rate=1000, connections=9, unproven_connections=3)
    with running(create_app(suite_of(red=Red), limits=limits)) as url:
        yield url


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


@pytest.mark.parametrize(
    ("first", "drip", "answer"),
    [
        (b"", b"", b""),
        (HEAD[:30], b"", b""),
        (HEAD[:30], b"x", b""),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" + HEAD[:30], b"x", b"HTTP/1.1 200"),
        (HEAD, b" ", b"HTTP/1.1 408"),
    ],
    ids=["silent", "half a head", "a slow head", "a slow head after an answer", "a slow body"],
)
def test_what_does_not_come_is_not_waited_for(hasty, first, drip, answer):
    with connect(hasty) as connection:
        connection.settimeout(0.1)
        started, got = time.monotonic(), b""
        connection.sendall(first)
        while time.monotonic() < started + 10:
            try:
                connection.sendall(drip)
                got += (piece := connection.recv(1000))
                if not piece:
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        assert 0.4 < time.monotonic() - started < 5
    assert got.startswith(answer)
    assert bool(got) == bool(answer)


def test_clients_keep_idle_connections_and_the_oldest_of_others_goes(hasty):
    with httpx2.Client(timeout=30, trust_env=False) as client:
        assert post(client, hasty, {"samples": [sample()]}).status_code == 200
        kept = list(client._transport._pool.connections)
        others = [connect(hasty) for _ in range(5)]
        assert [other.recv(10) for other in others[:2]] == [b"", b""]
        time.sleep(0.7)
        assert post(client, hasty, {"samples": [sample()]}).status_code == 200
        assert client._transport._pool.connections == kept  # the same one
        for other in others:
            other.close()


def test_scoring_may_take_longer_than_any_deadline():
    gate = Gate()
    limits = Limits(head_seconds=0.2, body_seconds=0.4)
    with running(create_app(suite_of(gate=gate), limits=limits)) as url, httpx2.Client(timeout=30) as client:
        threading.Timer(1, gate.open.set).start()
        assert post(client, url, {"samples": [sample(prompt="1")]}).json()["scores"]["gate"] == [1.0]


def test_what_repeats_in_the_log_is_left_out_and_counted():
    lines, log = [], logging.Logger("sparse")
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    handler.addFilter(Sparse(most_of_a_kind=3, most=5, seconds=0.5))
    log.addHandler(handler)
    for number in range(100):
        log.warning("refused %d", number)
    for number in range(100):
        log.warning(f"another kind each time {number}")
    assert lines == [*(f"refused {n}" for n in range(3)), *(f"another kind each time {n}" for n in range(2))]
    time.sleep(0.6)
    log.warning("refused %d", 100)
    log.warning("refused %d", 101)
    assert lines[5:] == ["refused 100 (195 records before it were left out)", "refused 101"]


def test_memory_is_had_by_one_alone_and_else_where_there_is_room():
    memory = Memory(100)
    with memory.lease() as one:
        assert one.hold(500)  # its limits bound it
        with memory.lease() as two:
            assert not two.hold(1)
            assert one.hold(60)
            assert two.hold(40)
            assert not two.hold(41)
            one.claim(20, 50)
            assert not one.has_room(one.own)  # 20 + 40 + 50
            assert not two.hold(41)
            assert two.hold(30)
            assert one.has_room(one.own)
            two.claim(10, 40)  # one is scored at a time: 50, not 90
            assert one.has_room(one.own)
            assert two.has_room(two.own)
        assert one.hold(100)
    with memory.lease() as three:
        assert three.hold(100)
