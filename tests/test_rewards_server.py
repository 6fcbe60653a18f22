"""The reward server over real HTTP: the same scores, requests scored together, limits, tokens, a clean end."""

import base64
import hmac
import io
import json
import math
import re
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image

from rewards import Reward, RewardBatch, RewardSpec, RewardSuite
from rewards.batching import ScoringThread
from rewards.commands.serving import read_suite
from rewards.server import bind, build_server, check_access, create_app, run_server, running
from rewards.wire import Column, ScoreRequest, encode_answer, encode_request, read_answer, read_request
from rewards.wire_images import BadRequest, Limits
from uniar.errors import UserError

TOKEN = "correct horse battery staple"


class Red(Reward):
    """The red channel, 0 to 255, of the first pixel; none for prompts that say so; fails on others that say so."""

    def score(self, batch):
        if any("fail" in prompt for prompt in batch.prompts):
            raise ValueError("asked to fail")
        return [
            None if "none" in prompt else {"score": image.getpixel((0, 0))[0], "why": f"saw {prompt}"}
            for prompt, image in zip(batch.prompts, batch.images, strict=True)
        ]


class BitsOn(Reward):
    async def score(self, batch):
        return None if batch.bits is None else batch.bits.flatten(1).sum(1)


class Gate(Reward):
    """Notes the prompts of each batch; scores only when it may."""

    def __init__(self):
        self.batches, self.open, self.begun = [], threading.Event(), threading.Event()

    def score(self, batch):
        self.batches.append(list(batch.prompts))
        self.begun.set()
        assert self.open.wait(30)
        return [float(prompt) for prompt in batch.prompts]


def picture(color="red", size=(8, 8), mode="RGB"):
    return Image.new(mode, size, color)


def noise(size=64):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def png(image=None, **options):
    buffer = io.BytesIO()
    (image or picture()).save(buffer, format="PNG", **options)
    return buffer.getvalue()


def jpeg(image=None, **options):
    buffer = io.BytesIO()
    (image or picture()).save(buffer, format="JPEG", **options)
    return buffer.getvalue()


def text(data):
    return base64.b64encode(data).decode()


def sample(**entries):
    return {"prompt": "a", "image": text(png()), **entries}


def png_header(width, height, depth=8, color=2):
    """A PNG that claims a size and has no pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def suite_of(**rewards):
    """Name → a class, or a reward that was made already."""
    suite = RewardSuite([RewardSpec(r if isinstance(r, type) else Red, name=n, retries=0) for n, r in rewards.items()])
    suite.rewards = tuple(
        made if isinstance(given, type) else given for made, given in zip(suite.rewards, rewards.values(), strict=True)
    )
    suite.load()
    return suite


@pytest.fixture(scope="module")
def url():
    with running(create_app(suite_of(red=Red, bits=BitsOn))) as url:
        yield url


@pytest.fixture(scope="module")
def client():
    with httpx2.Client(timeout=30, trust_env=False) as client:
        yield client


def post(client, url, content, **options):
    return client.post(f"{url}/v1/score", json=content, **options)


# Scores --------------------------------------------------------------------------------------------------------------


def test_scores_failures_and_details_come_back_in_order(client, url):
    samples = [
        sample(prompt=prompt, image=text(png(picture((value, 0, 0)))))
        for prompt, value in (("a", 10), ("fail", 20), ("none", 30), ("b", 40))
    ]
    answer = post(client, url, {"samples": samples, "rewards": ["red"]})
    assert answer.status_code == 200
    content = answer.json()
    failures = content.pop("failures")
    assert content == {
        "scores": {"red": [10.0, None, None, 40.0]},
        "details": {"red": {"0": {"why": "saw a"}, "3": {"why": "saw b"}}},
    }
    assert list(failures["red"]) == ["1"]
    assert failures["red"]["1"].startswith("raised ValueError: asked to fail (test_rewards_server.py, line ")


def test_an_encoded_batch_arrives_as_it_was():
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (9, 7, 3), dtype=np.uint8)) for _ in range(3)]
    bits = torch.from_numpy(random.integers(0, 2, (3, 5, 2, 4, 3), dtype=np.uint8))
    batch = RewardBatch(["a", "漢字", "c"], images, ["t", None, "u"], [{"n": [1, {"x": None}]}, {}, {}], bits)
    asked = read_request(encode_request(batch, ["red"], send_bits=True), ["red", "blue"], Limits())
    assert asked.rewards == ("red",)
    assert (asked.batch.prompts, asked.batch.tasks, asked.batch.metadata) == (
        batch.prompts,
        batch.tasks,
        batch.metadata,
    )
    assert [image.tobytes() for image in asked.batch.images] == [image.tobytes() for image in images]
    assert torch.equal(asked.batch.bits, bits)
    assert read_request(encode_request(batch, ["red"]), ["red"], Limits()).batch.bits is None


def test_jpeg_and_other_modes_arrive_as_rgb():
    pictures = [jpeg(picture("blue")), jpeg(picture(128, mode="L")), png(picture((9, 8, 7, 0), mode="RGBA"))]
    body = json.dumps({"samples": [sample(image=text(data)) for data in pictures]}).encode()
    images = read_request(body, ["red"], Limits()).batch.images
    assert {image.mode for image in images} == {"RGB"}
    assert [image.getpixel((4, 4)) for image in images] == [(0, 0, 254), (128, 128, 128), (9, 8, 7)]


def test_an_answer_reads_back_and_carries_no_nan():
    column = Column([1.5, math.nan, math.nan], {1: "broke"}, {0: {"why": "it shines", "boxes": [[1, 2]]}})
    content = encode_answer({"red": column})
    assert b"NaN" not in content
    scored, failed, without = read_answer(content, "red", 3)
    assert (scored["score"], scored["why"], scored["boxes"]) == (1.5, "it shines", [[1, 2]])
    assert isinstance(failed, Exception)
    assert str(failed) == "broke"
    assert without is None


def test_bits_reach_a_reward(client, url):
    bits = torch.tensor([[0, 1, 1], [1, 1, 1]], dtype=torch.uint8).reshape(2, 1, 1, 1, 3)
    body = encode_request(RewardBatch(["a", "b"], [picture()] * 2, bits=bits), ["bits"], send_bits=True)
    answer = client.post(f"{url}/v1/score", content=body, headers={"Content-Type": "application/json"})
    assert answer.json()["scores"] == {"bits": [2.0, 3.0]}


def test_a_reward_sees_the_samples_of_its_tasks():
    suite = suite_of(red=Red)
    suite.specs = (RewardSpec(Red, name="red", tasks=("x",)),)
    thread = ScoringThread(suite, 8)
    batch = RewardBatch(["a", "b", "c"], [picture((n, 0, 0)) for n in (1, 2, 3)], ["y", "x", None])
    scores = thread.submit(ScoreRequest(batch, ("red",))).result()["red"].scores
    thread.close()
    assert [math.isnan(score) for score in scores] == [True, False, True]
    assert scores[1] == 2


# Together ------------------------------------------------------------------------------------------------------------


def test_requests_that_wait_are_scored_together_and_no_more_than_allowed():
    gate = Gate()
    app = create_app(suite_of(gate=gate), limits=Limits(samples=4))
    with running(app) as url, httpx2.Client() as client, ThreadPoolExecutor(16) as pool:

        def ask(*numbers):
            return pool.submit(post, client, url, {"samples": [sample(prompt=str(n)) for n in numbers]})

        first = ask(0)
        assert gate.begun.wait(10)
        others = [ask(n) for n in range(1, 6)] + [ask(10, 11, 12, 13)]
        time.sleep(0.5)  # for the others to arrive: those that do not are scored later, and the test says less
        gate.open.set()
        answers = [future.result().json()["scores"]["gate"] for future in [first, *others]]
    assert answers == [[float(n)] for n in range(6)] + [[10.0, 11.0, 12.0, 13.0]]
    assert gate.batches[0] == ["0"]
    assert sorted(prompt for batch in gate.batches for prompt in batch) == sorted(map(str, [*range(6), *range(10, 14)]))
    assert ["10", "11", "12", "13"] in gate.batches  # a request is never split
    assert max(map(len, gate.batches)) <= 4


def scored_together(pointwise, jobs):
    """The batches that a reward saw of requests which had all been submitted before the first was scored."""
    gate = Gate()
    gate.pointwise = pointwise
    thread = ScoringThread(suite_of(gate=gate), 64)
    blocker = thread.submit(ScoreRequest(RewardBatch(["-1"], [picture()]), ("gate",)))
    assert gate.begun.wait(10)
    futures = [thread.submit(ScoreRequest(batch, ("gate",))) for batch in jobs]
    cancelled = [n for n, future in enumerate(futures) if jobs[n].prompts == ["99"] and future.cancel()]
    gate.open.set()
    results = [None if n in cancelled else future.result(10)["gate"].scores for n, future in enumerate(futures)]
    blocker.result(10)
    thread.close()
    return gate.batches[1:], results


def test_a_reward_that_compares_samples_sees_each_request_by_itself():
    jobs = [RewardBatch(["1", "2"], [picture()] * 2), RewardBatch(["3"], [picture()])]
    assert scored_together(True, jobs) == ([["1", "2", "3"]], [[1, 2], [3]])
    assert scored_together(False, jobs) == ([["1", "2"], ["3"]], [[1, 2], [3]])


def test_samples_with_other_bits_are_another_batch_and_who_left_is_not_scored():
    bits = [torch.zeros(1, n, 1, 1, 1, dtype=torch.uint8) for n in (2, 2, 3)]
    jobs = [RewardBatch([str(n)], [picture()], bits=given) for n, given in enumerate([*bits, None])]
    jobs.insert(1, RewardBatch(["99"], [picture()], bits=bits[0]))
    batches, results = scored_together(True, jobs)
    assert batches == [["0", "1"], ["2"], ["3"]]
    assert results == [[0], None, [1], [2], [3]]


def test_a_server_whose_weights_do_not_fit_on_the_gpu_does_not_start(monkeypatch):
    """Rather than start without the thread that scores, and let every request wait."""

    class Large(Red):
        def to(self, device):
            if torch.device(device).type != "cpu":
                raise RuntimeError("out of memory")

    monkeypatch.setattr("rewards.suite.default_device", lambda: torch.device("meta"))  # stands for a GPU
    suite = RewardSuite([RewardSpec(Large, offload=True)])
    with bind("127.0.0.1", 0) as listener, pytest.raises(SystemExit, match="3"):
        run_server(build_server(create_app(suite), drain_seconds=1), listener)


def test_a_client_that_hangs_up_while_it_waits_is_not_scored():
    gate = Gate()
    with running(create_app(suite_of(gate=gate))) as url, httpx2.Client() as client, ThreadPoolExecutor(4) as pool:
        first = pool.submit(post, client, url, {"samples": [sample(prompt="1")]})
        assert gate.begun.wait(10)
        with pytest.raises(httpx2.ReadTimeout):
            post(client, url, {"samples": [sample(prompt="2")]}, timeout=0.5)
        time.sleep(0.3)  # for the server to notice
        gate.open.set()
        assert first.result().status_code == 200
        assert post(client, url, {"samples": [sample(prompt="3")]}).json()["scores"]["gate"] == [3.0]
    assert gate.batches == [["1"], ["3"]]


# What is refused -----------------------------------------------------------------------------------------------------

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
    ({"samples": [{"image": "x"}]}, 400, r"samples\[0\].prompt is None; a text"),
    ({"samples": [sample(), sample(prompt=3)]}, 400, r"samples\[1\].prompt is 3; a text"),
    ({"samples": [sample(prompt=10**30)]}, 400, "prompt is a huge number"),
    ({"samples": [sample(prompt="a" * 101)]}, 413, "101 characters; at most 100"),
    ({"samples": [sample(prompt="a\ud800")]}, 400, "half of a surrogate pair"),
    ({"samples": [sample(task=1)]}, 400, r"samples\[0\].task is 1; a text or null"),
    ({"samples": [sample(metadata=[])]}, 400, r"samples\[0\].metadata is a list of 0 entries; an object"),
    ({"samples": [sample(metadata={"a": "b" * 200})]}, 413, "metadata has 209 characters; at most 100"),
    ({"samples": [sample(metadata={"\udfff": 1})]}, 400, "half of a surrogate pair"),
    ({"samples": [sample(image=None)]}, 400, r"samples\[0\].image is None; base64 in a text"),
    ({"samples": [sample(image="?")]}, 400, r"samples\[0\].image is not base64"),
    ({"samples": [sample(image="é")]}, 400, r"samples\[0\].image is not base64"),
    ({"samples": [sample(image="")]}, 400, "neither a PNG nor a JPEG"),
    ({"samples": [sample(image=text(b"GIF89a" + b"\0" * 50))]}, 400, "neither a PNG nor a JPEG"),
    ({"samples": [sample(image=text(png()[:20]))]}, 400, "cannot be read: Truncated"),
    ({"samples": [sample(image=text(png(noise())[:-500]))]}, 400, r"samples\[0\].image cannot be decoded: .*truncated"),
    ({"samples": [sample(image=text(jpeg(noise())[:-500]))]}, 400, "cannot be decoded: .*truncated"),
    ({"samples": [sample(image=text(jpeg(noise())[:100]))]}, 400, "cannot be read: Truncated"),
    ({"samples": [sample(image=text(png_header(101, 100)))]}, 413, "101 × 100 pixels; at most 10000"),
    ({"samples": [sample(image=text(png_header(2**31 - 1, 2**31 - 1)))]}, 413, "far more than the 10000 pixels"),
    ({"samples": [sample(image=text(png_header(100, 100)))] * 2}, 413, "20000 pixels together; at most 15000"),
    ({"samples": [sample(image=text(png(picture(size=(1, 21)))))]}, 400, "one side may be 20 times the other"),
    ({"samples": [sample(image=text(png(picture(7, mode="I;16"))))]}, 400, "mode 'I;16'; 8 bits a channel"),
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
    (b'{"samples": NaN}', 400, "NaN is no JSON value"),
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
    app = create_app(suite_of(gate=gate), limits=Limits(resident_bytes=40_000))
    with running(app) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, client, url, {"samples": [sample(prompt="1", image=big)]})
        assert gate.begun.wait(10)
        answer = post(client, url, {"samples": [sample(prompt="2" + " " * 20_000)]})
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
        gate.open.set()
        assert first.result().status_code == 200
        assert post(client, url, {"samples": [sample(prompt="3")]}).status_code == 200


# Tokens --------------------------------------------------------------------------------------------------------------


def test_without_the_token_nothing_is_scored(client, monkeypatch):
    compared = []

    def noted(left, right, compare=hmac.compare_digest):
        compared.append((left, right))
        return compare(left, right)

    monkeypatch.setattr(hmac, "compare_digest", noted)
    with running(create_app(suite_of(red=Red), token=TOKEN)) as url:
        content = {"samples": [sample()]}
        wrong = ["Bearer wrong", "Bearer", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", ""]
        for value in [*wrong, b"Bearer \xff\xfe\xe9"]:
            answer = post(client, url, content, headers={"Authorization": value})
            assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert client.get(f"{url}/v1/rewards", headers={"Authorization": value}).status_code == 401
        assert len(compared) == 16  # in constant time, each of them
        assert post(client, url, content).status_code == 401
        assert client.get(f"{url}/health").json() == {"status": "ok"}
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert post(client, url, content, headers=right).status_code == 200
        assert client.get(f"{url}/v1/rewards", headers=right).json()["rewards"] == [{"name": "red", "pointwise": True}]


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.2", "example.com", "localhost.example.com", "127.0.0.1.nip.io", ""]
)
def test_beyond_this_machine_a_token_is_needed(host):
    with pytest.raises(UserError, match="needs a token"):
        check_access(host, None)
    check_access(host, TOKEN)


def test_on_this_machine_no_token_is_needed_but_a_short_one_is_refused():
    for host in ("127.0.0.1", "127.1.2.3", "localhost", "::1", "[::1]"):
        check_access(host, None)
    for token in ("short", "é" * 20, "line\nbreak in a long token"):
        with pytest.raises(UserError, match="the token has"):
            check_access("127.0.0.1", token)


# The file -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rewards: [", "not valid YAML"),
        ("- color", "a mapping with the key 'rewards'"),
        ("rewards: []", "rewards is empty"),
        ("reward: [color]", "a mapping with the key 'rewards'"),
        ("rewards: [color]\nport: 1", "unknown key 'port'"),
        ("rewards: [colour]", "Did you mean 'color'"),
        ("rewards: [{use: color, colour: red}]", "unknown parameter 'colour'"),
        ("rewards: [{use: color, color: !!python/object:os.system x}]", "not valid YAML"),
    ],
)
def test_a_file_that_cannot_be_served_is_refused(tmp_path, content, message):
    (tmp_path / "rewards.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        read_suite(tmp_path / "rewards.yaml")
