"""What the reward server refuses over real HTTP, in a sentence, and how little it spends on it."""

import json
import re
import socket
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from support.served_rewards import Gate, Red, jpeg, noise, picture, png, post, running, sample, suite_of, text

from rewards.remote.wire import read_request
from rewards.remote.wire_images import BadRequest, Limits
from rewards.serving.server import create_app


def png_header(width, height, depth=8, color=2):
    """A PNG that claims a size and has no pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def client():
    with httpx2.Client(timeout=30, trust_env=False) as client:
        yield client


SMALL = Limits(
    body_bytes=200_000,
    body_seconds=1.0,
    samples=3,
    image_pixels=10_000,
    request_pixels=15_000,
    prompt_characters=100,
    metadata_characters=100,
    json_values=1000,
    bits=64,
)
BITS = {"shape": [1, 1, 1, 3], "packed": text(b"\xe0")}
REFUSED = [
    ({}, 400, "samples is None; a list with at least one sample is needed"),
    ([], 400, "the request is a list of 0 entries; an object with the keys samples, rewards is needed"),
    ("x", 400, "the request is 'x'"),
    ({"samples": []}, 400, "samples is a list of 0 entries"),
    ({"samples": {"prompt": "a"}}, 400, "samples is an object of 1 entries"),
    ({"samples": ["a"]}, 400, r"samples\[0\] is 'a'; an object"),
    ({"samples": [sample()], "reward": "red"}, 400, "unknown key 'reward'. Did you mean 'rewards'"),
    ({"samples": [sample()], "rewards": "red"}, 400, "rewards is 'red'; a list of names"),
    ({"samples": [sample()], "rewards": []}, 400, "rewards is a list of 0 entries"),
    ({"samples": [sample()], "rewards": ["read"]}, 400, "'read' is not served here; served: red. Did you mean 'red'"),
    ({"samples": [sample()], "rewards": [["red"]]}, 400, "a list of names"),
    ({"samples": [sample()], "rewards": ["red", "red"]}, 400, "each name is needed once"),
    ({"samples": [sample()] * 4}, 413, "4 samples; at most 3"),
    ({"samples": [sample(promt="a")]}, 400, r"samples\[0\] has the unknown key 'promt'. Did you mean 'prompt'"),
    ({"samples": [{"image": "x"}]}, 400, r"samples\[0\].prompt is None; a string"),
    ({"samples": [sample(), sample(prompt=3)]}, 400, r"samples\[1\].prompt is 3; a string"),
    ({"samples": [sample(prompt=10**30)]}, 400, "prompt is a huge number"),
    ({"samples": [sample(prompt="a" * 101)]}, 413, "101 characters; at most 100"),
    ({"samples": [sample(prompt="a\ud800")]}, 400, "half of a surrogate pair"),
    ({"samples": [sample(task=1)]}, 400, r"samples\[0\].task is 1; a string or null"),
    ({"samples": [sample(metadata=[])]}, 400, r"samples\[0\].metadata is a list of 0 entries; an object"),
    ({"samples": [sample(metadata={"a": "b" * 200})]}, 413, "metadata has 209 characters; at most 100"),
    ({"samples": [sample(metadata={"\udfff": 1})]}, 400, "half of a surrogate pair"),
    ({"samples": [sample(image=None)]}, 400, r"samples\[0\] has no image and no texts; one of them is needed"),
    ({"samples": [sample(image=4)]}, 400, r"samples\[0\].image is 4; base64 in a string"),
    ({"samples": [sample(texts="a")]}, 400, r"samples\[0\].texts is 'a'; a list is needed"),
    ({"samples": [sample(texts=["a", None])]}, 400, r"samples\[0\].texts\[1\] is None; a string is needed"),
    ({"samples": [sample(texts=["a" * 101])]}, 413, r"samples\[0\].texts\[0\] has 101 characters; at most 100"),
    ({"samples": [sample(texts=["a"] * 4)]}, 413, r"samples\[0\].texts has 4 items; at most 3 are taken"),
    ({"samples": [sample(source_images={})]}, 400, r"samples\[0\].source_images is an object of 0 entries; a list"),
    ({"samples": [sample(source_images=["?"])]}, 400, r"samples\[0\].source_images\[0\] is not base64"),
    ({"samples": [sample(image="?")]}, 400, r"samples\[0\].image is not base64"),
    ({"samples": [sample(image="é")]}, 400, r"samples\[0\].image is not base64"),
    ({"samples": [sample(image="")]}, 400, r"not a whole picture in a format that is read \(PNG, JPEG\)"),
    (
        {"samples": [sample(image=text(b"GIF89a" + b"\0" * 50))]},
        400,
        r"not a whole picture in a format that is read \(PNG, JPEG\)",
    ),
    ({"samples": [sample(image=text(png()[:20]))]}, 400, "cannot be read: Truncated"),
    ({"samples": [sample(image=text(png(noise())[:-500]))]}, 400, r"samples\[0\].image cannot be read: .*truncated"),
    ({"samples": [sample(image=text(jpeg(noise())[:-500]))]}, 400, "cannot be read: .*truncated"),
    ({"samples": [sample(image=text(jpeg(noise())[:100]))]}, 400, "cannot be read: Truncated"),
    ({"samples": [sample(image=text(png_header(101, 100)))]}, 413, "101 × 100 pixels; at most 10000"),
    ({"samples": [sample(image=text(png_header(2**31 - 1, 2**31 - 1)))]}, 413, "far more than the 10000 pixels"),
    ({"samples": [sample(image=text(png_header(100, 100)))] * 2}, 413, "20000 pixels together; at most 15000"),
    ({"samples": [sample(image=text(png(picture(size=(1, 21)))))]}, 400, "one side may be 20 times the other"),
    ({"samples": [sample(image=text(png(picture(7, mode="I;16"))))]}, 400, "mode 'I;16'; 8 bits per channel"),
    ({"samples": [sample(image=text(jpeg() + b"\xff\xda" * 70))]}, 400, "more than 64 scans"),
    ({"samples": [sample(bits=1)]}, 400, r"samples\[0\].bits is 1; an object"),
    ({"samples": [sample(bits=BITS), sample()]}, 400, r"samples\[1\].bits is missing"),
    ({"samples": [sample(bits={**BITS, "shape": [1, 2, 3]})]}, 400, "four whole numbers"),
    ({"samples": [sample(bits={**BITS, "shape": [1, 1, 1, 0]})]}, 400, "four whole numbers"),
    ({"samples": [sample(bits={**BITS, "shape": [1, 1, 1, True]})]}, 400, "four whole numbers"),
    ({"samples": [sample(bits={**BITS, "shape": [9, 9, 9, 9]})]}, 400, "together at most 64 bits"),
    ({"samples": [sample(bits={**BITS, "packed": text(b"ab")})]}, 400, "packed has 2 bytes; the shape .* needs 1"),
    ({"samples": [sample(bits=BITS), sample(bits={**BITS, "shape": [1, 1, 3, 1]})]}, 400, "they must be equal"),
    ({"samples": [sample(metadata={"a": [0] * 1000})]}, 413, "more than the 1000 JSON values"),
]
REFUSED_BODIES = [
    (b"", 400, "not JSON in UTF-8"),
    (b"{", 400, "not JSON in UTF-8"),
    (b"\xff\xfe\x00", 400, "not JSON in UTF-8"),
    (b"\xef\xbb\xbf{}", 400, "not JSON in UTF-8"),
    (b'{"samples": NaN}', 400, "NaN is not a JSON value"),
    (b'{"samples": ' + b"9" * 5000 + b"}", 400, "not JSON in UTF-8"),
    (b"[" * 900 + b"]" * 900, 400, "the request is a list|nested too deeply"),
    (b'{"samples": ' * 200_000, 413, "the body has .* bytes; at most 200000"),
]


@pytest.fixture(scope="module")
def small():
    with running(create_app(suite_of(red=Red), limits=SMALL)) as url:
        yield url


@pytest.mark.parametrize(("content", "status", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_wrong_is_refused_in_a_sentence(client, small, content, status, message):
    answer = client.post(
        f"{small}/v1/score", content=json.dumps(content).encode(), headers={"Content-Type": "application/json"}
    )
    check_refusal(answer, status, message)


@pytest.mark.parametrize(("body", "status", "message"), REFUSED_BODIES, ids=range(len(REFUSED_BODIES)))
def test_a_body_that_is_no_json_is_refused(client, small, body, status, message):
    answer = client.post(f"{small}/v1/score", content=body, headers={"Content-Type": "application/json"})
    check_refusal(answer, status, message)


def check_refusal(answer, status, message):
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    sentence = answer.json()["error"]
    assert re.search(message, sentence)
    assert sentence.endswith((".", "?"))
    assert len(sentence) < 500


def test_deep_nesting_is_refused():
    for depth in (2000, 100_000):
        with pytest.raises(BadRequest, match="nested too deeply"):
            read_request(b'{"a":' * depth + b"1" + b"}" * depth, ["red"], Limits())


def test_a_body_without_length_is_read_no_further_than_its_limit(client, small):
    sent = 0

    def chunks():
        nonlocal sent
        for _ in range(1000):
            sent += 10_000
            yield b" " * 10_000

    try:
        answer = client.post(f"{small}/v1/score", content=chunks(), headers={"Content-Type": "application/json"})
        check_refusal(answer, 413, "larger than the 200000 bytes")
    except httpx2.TransportError:
        pass  # cut off while it wrote on
    assert sent < 10_000_000


def test_a_body_that_does_not_come_is_not_waited_for(small):
    host, port = small.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = "POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        connection.sendall(head.encode())
        answer = connection.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {}, 404),
        ("GET", "/docs", {}, 404),
        ("GET", "/openapi.json", {}, 404),
        ("GET", "/v1/score", {}, 405),
        ("DELETE", "/health", {}, 405),
        ("POST", "/v1/score/", {}, 404),
        ("POST", "/v1/score", {}, 415),
        ("POST", "/v1/score", {"Content-Type": "text/plain"}, 415),
        ("POST", "/v1/score", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ("POST", "/v1/score", {"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415),
    ],
)
def test_paths_methods_and_headers_that_are_not_served(client, small, method, path, headers, status):
    content = b"{}" if method == "POST" else None
    answer = client.request(method, small + path, headers=headers, content=content)
    assert answer.status_code == status


def test_too_many_bytes_at_a_time_have_to_wait(client):
    gate = Gate()
    big = text(png(picture(size=(100, 100))))
    app = create_app(suite_of(gate=gate), limits=Limits(resident_bytes=40_000, wait_seconds=0.2))
    with running(app) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, client, url, {"samples": [sample(prompt="1", image=big)]})
        assert gate.begun.wait(10)
        answer = post(client, url, {"samples": [sample(prompt="2" + " " * 20_000)]})
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
        gate.open.set()
        assert first.result().status_code == 200
        assert post(client, url, {"samples": [sample(prompt="3")]}).status_code == 200
