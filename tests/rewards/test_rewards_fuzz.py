"""The server as a process of its own: malformed requests by the hundred, its memory, and how it ends on a signal."""

import base64
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import httpx2
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

TOKEN = "correct horse battery staple"
BODY_BYTES, PIXELS, SAMPLES = 2_000_000, 1_000_000, 4
# Two requests are unpacked at a time, each in up to eight times its body and seven bytes per pixel. The rest is what
# Python and its allocator keep.
MOST_GROWTH = 2 * (8 * BODY_BYTES + 7 * SAMPLES * PIXELS) + 20_000_000

SLOW = """
import time
from pathlib import Path

def slow(prompts, images):
    Path("begun").touch()
    time.sleep(1)
    return [image.getpixel((0, 0))[0] for image in images]
"""


class Server(NamedTuple):
    process: subprocess.Popen
    url: str
    folder: Path
    client: httpx2.Client

    def post(self, body, **headers):
        names = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}", **headers}
        return self.client.post(f"{self.url}/v1/score", content=body, headers=names)

    def memory(self, peak="VmRSS"):
        """Bytes that the process has in memory; "VmHWM": had at most."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(next(line for line in status.splitlines() if line.startswith(peak)).split()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    (folder / "slow.py").write_text(SLOW)
    (folder / "rewards.yaml").write_text("rewards: [{use: color, color: red}, 'slow.py:slow']\n")
    limits = ["--max-body-mb", str(BODY_BYTES / 1e6), "--max-pixels", str(PIXELS), "--max-samples", str(SAMPLES)]
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-m", "rl.cli", "rewards", "serve", "rewards.yaml", "--port", "0", *limits],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root, "UNIAR_REWARDS_TOKEN": TOKEN},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        url = next(line.split()[-1] for line in process.stdout if line.startswith("serving "))
        with httpx2.Client(timeout=60, trust_env=False) as client:
            yield Server(process, url, folder, client)
    finally:
        process.kill()
        process.wait()


# Requests that are wrong ---------------------------------------------------------------------------------------------


def text(data):
    return base64.b64encode(data).decode()


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of_size(width, height, depth=8, color=2, more=b""):
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(bytes(1000))) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + more + data


def jpeg_of_size(width, height):
    place = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:place] + struct.pack(">HH", height, width) + JPEG[place + 4 :]


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
PNG, JPEG = encoded(NOISE, "PNG"), encoded(NOISE, "JPEG")
# 400 million pixels in 50 kB, and 100 MB of text in 100 kB: both unpack without complaint where nobody counts.
BOMB = encoded(Image.new("1", (20_000, 20_000)), "PNG", optimize=True)
TEXT_BOMB = png_of_size(4, 4, more=png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000), 9)))
PROFILE_BOMB = png_of_size(4, 4, more=png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(100_000_000), 9)))
BITS = {"shape": [1, 2, 2, 2], "packed": text(b"\xa5")}
GOOD = {
    "samples": [{"prompt": "a", "image": text(PNG), "task": "t", "metadata": {"color": "red"}, "bits": BITS}],
    "rewards": ["color"],
}
OF_SAMPLE = {
    "prompt": (str,),
    "image": (str,),
    "task": (str, type(None)),
    "metadata": (dict, type(None)),
    "bits": (dict, type(None)),
}
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=20)
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
)


class Wrong(NamedTuple):
    """A request; `certainly` where no reading of the format accepts it."""

    body: bytes
    headers: dict = {}  # noqa: RUF012 (a default, never changed)
    certainly: bool = True


def with_sample(**entries):
    return Wrong(json.dumps({"samples": [{**GOOD["samples"][0], **entries}], "rewards": ["color"]}).encode())


def with_image(data, certainly=True):
    return with_sample(image=text(data))._replace(certainly=certainly)


@st.composite
def wrong_types(draw):
    if draw(st.booleans()):
        key = draw(st.sampled_from(list(OF_SAMPLE)))
        return with_sample(**{key: draw(values.filter(lambda value: type(value) not in OF_SAMPLE[key]))})
    key, kinds = draw(st.sampled_from([("samples", (list,)), ("rewards", (list, type(None)))]))
    value = draw(values.filter(lambda value: type(value) not in kinds))
    return Wrong(json.dumps({**GOOD, key: value}).encode())


@st.composite
def wrong_entries(draw):
    sample = draw(values.filter(lambda value: value != {}))
    return Wrong(json.dumps({"samples": draw(st.permutations([GOOD["samples"][0], sample]))}).encode())


@st.composite
def wrong_keys(draw):
    known = [*OF_SAMPLE, *GOOD]
    if draw(st.booleans()):
        sample = dict(GOOD["samples"][0])
        del sample[draw(st.sampled_from(["prompt", "image"]))]
        return Wrong(json.dumps({"samples": [sample]}).encode())
    return with_sample(**{draw(st.text(max_size=9).filter(lambda key: key not in known)): draw(values)})


@st.composite
def wrong_bits(draw):
    shape = st.lists(st.integers(-3, 2**40) | leaves, max_size=6).filter(lambda shape: shape != BITS["shape"])
    packed = values.filter(lambda value: value != BITS["packed"])
    entry = draw(st.sampled_from(["shape", "packed"]))
    bits = {**BITS, entry: draw(shape if entry == "shape" else packed)}
    # [2, 2, 2, 1] would be as good a shape, and another byte as good bits.
    return with_sample(bits=bits)._replace(certainly=False)


@st.composite
def truncated_images(draw):
    data = draw(st.sampled_from([PNG, JPEG]))
    return with_image(data[: draw(st.integers(0, len(data) - 200))])


@st.composite
def large_images(draw):
    width, height = draw(st.integers(1001, 65_535)), draw(st.integers(1000, 65_535))
    return with_image(draw(st.sampled_from([png_of_size, jpeg_of_size]))(width, height))


@st.composite
def odd_images(draw):
    sides = st.integers(0, 300)
    depth, color = draw(st.sampled_from([1, 2, 4, 8, 16, 32])), draw(st.integers(0, 7))
    return with_image(png_of_size(draw(sides), draw(sides), depth, color), certainly=False)


@st.composite
def damaged_images(draw):
    data = bytearray(draw(st.sampled_from([PNG, JPEG])))
    for place in draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=8)):
        data[place] = draw(st.integers(0, 255))
    return with_image(bytes(data), certainly=False)


other_files = st.sampled_from(["GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO"]).map(
    lambda kind: with_image(encoded(NOISE, kind))
)
noise_as_image = st.binary(max_size=300).map(with_image)
not_base64 = st.text(min_size=1, max_size=50).filter(lambda t: not t.isascii()).map(lambda t: with_sample(image=t))


@st.composite
def damaged_bodies(draw):
    body = bytearray(json.dumps(GOOD).encode())
    if draw(st.booleans()):
        return Wrong(bytes(body[: draw(st.integers(0, len(body) - 1))]))
    place = draw(st.integers(0, len(body)))
    body[place:place] = draw(st.binary(min_size=1, max_size=5))
    return Wrong(bytes(body), certainly=False)


noise_as_body = st.binary(max_size=300).filter(lambda body: b"{" not in body).map(Wrong)
deep_bodies = st.tuples(st.integers(900, 50_000), st.sampled_from([b"[", b'{"a":', b'{"samples":['])).map(
    lambda drawn: Wrong(drawn[1] * drawn[0])
)
wide_bodies = st.tuples(st.integers(131_073, 300_000), st.sampled_from([b"1,", b"[],", b"{},"])).map(
    lambda drawn: Wrong(b'{"samples":[' + drawn[1] * drawn[0] + b"1]}")
)
large_bodies = st.integers(BODY_BYTES + 1, BODY_BYTES + 100_000).map(lambda size: Wrong(b" " * size))
wide_texts = st.integers(100_000, 400_000).map(lambda size: with_sample(prompt="\N{GRINNING FACE}" * size))
wrong_constants = st.sampled_from([b"NaN", b"Infinity", b"-Infinity", b"9" * 5000, b"1e", b"01", b"'a'"]).map(
    lambda constant: Wrong(json.dumps(GOOD).encode().replace(b'"t"', constant))
)
surrogates = st.sampled_from(["prompt", "task"]).map(lambda key: with_sample(**{key: "a\ud83d"}))
too_many = st.integers(SAMPLES + 1, 40).map(
    lambda count: Wrong(json.dumps({"samples": GOOD["samples"] * count}).encode())
)
good_body = json.dumps(GOOD).encode()
header_text = st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=40).map(
    lambda t: t.encode("latin-1")
)
wrong_tokens = header_text.filter(lambda value: value != f"Bearer {TOKEN}".encode()).map(
    lambda value: Wrong(good_body, {"Authorization": value})
)
wrong_kinds = header_text.filter(lambda value: value.lower()[:16] != b"application/json").map(
    lambda value: Wrong(good_body, {"Content-Type": value})
)
wrong_requests = st.one_of(
    wrong_types(),
    wrong_entries(),
    wrong_keys(),
    wrong_bits(),
    truncated_images(),
    large_images(),
    odd_images(),
    damaged_images(),
    other_files,
    noise_as_image,
    not_base64,
    damaged_bodies(),
    noise_as_body,
    deep_bodies,
    wide_bodies,
    large_bodies,
    wide_texts,
    wrong_constants,
    surrogates,
    too_many,
    wrong_tokens,
    wrong_kinds,
    st.sampled_from([with_image(BOMB), with_image(TEXT_BOMB), with_image(PROFILE_BOMB, certainly=False)]),
)


def check(server, wrong):
    """Sends it; whether it was refused. A damaged picture or body may still be a good one."""
    answer = server.post(wrong.body, **wrong.headers)
    assert answer.status_code < 500
    if wrong.certainly:
        assert answer.status_code >= 400
    if answer.status_code >= 400:
        [(key, sentence)] = answer.json().items()
        assert key == "error"
        assert sentence.endswith((".", "?"))
    return answer.status_code >= 400


def check_health(server, before):
    """Still there, still right, and no larger than it may be."""
    assert server.process.poll() is None
    assert server.post(good_body).json()["scores"]["color"] == [pytest.approx(0, abs=0.5)]
    growth = server.memory("VmHWM") - before
    print(f"memory grew by {growth / 1e6:.1f} MB at most, of {MOST_GROWTH / 1e6:.0f} MB allowed")
    assert growth < MOST_GROWTH


def fuzz(server, count):
    """At least `count` requests that are refused."""
    refused = 0
    options = {"deadline": None, "derandomize": True, "database": None, "print_blob": False}
    skipped = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]

    @settings(max_examples=count * 5 // 4, suppress_health_check=skipped, **options)
    @given(wrong_requests)
    @example(with_image(BOMB))
    @example(with_image(TEXT_BOMB))
    @example(with_image(PROFILE_BOMB, certainly=False))
    def run(wrong):
        nonlocal refused
        refused += check(server, wrong)

    server.post(good_body)  # what is imported and made at the first request is none of the growth
    before = server.memory()
    run()
    assert refused >= count
    check_health(server, before)


def test_500_malformed_requests_get_a_4xx_and_leave_no_trace(server):
    fuzz(server, 500)


@pytest.mark.slow
def test_10000_malformed_requests_get_a_4xx_and_leave_no_trace(server):
    fuzz(server, 10_000)


@pytest.mark.slow
def test_malformed_requests_from_many_clients_at_a_time(server):
    server.post(good_body)
    before = server.memory()
    wrong = [
        with_image(BOMB),
        with_image(TEXT_BOMB),
        Wrong(b" " * BODY_BYTES),
        Wrong(b"[" * 10_000),
        Wrong(good_body[:99]),
    ]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: check(server, wrong[n % len(wrong)]), range(2000)))
    check_health(server, before)


def test_bytes_that_are_no_http_are_refused(server):
    heads = st.sampled_from(
        [b"", b"POST /v1/score HTTP/1.1\r\n", b"GET /v1/rewards HTTP/1.1\r\nHost: a\r\nContent-Length: "]
    )
    host, port = server.url.removeprefix("http://").split(":")

    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @given(heads, st.binary(min_size=1, max_size=400))
    def run(head, data):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            try:
                connection.sendall(head + data + b"\r\n\r\n")
                connection.shutdown(socket.SHUT_WR)
                answer = connection.recv(1000)
            except ConnectionError:
                return  # cut off
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4")

    before = server.memory()
    run()
    check_health(server, before)


# Its end -------------------------------------------------------------------------------------------------------------


def test_a_signal_ends_the_server_after_what_is_in_flight(server):
    body = json.dumps({**GOOD, "rewards": ["slow"]}).encode()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.post, body)
        deadline = time.monotonic() + 20
        while not (server.folder / "begun").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)
        assert asked.result().json()["scores"] == {"slow": [float(NOISE.getpixel((0, 0))[0])]}
    assert server.process.wait(20) == 0
    assert server.process.stdout.read().endswith("ended\n")
    with pytest.raises(httpx2.ConnectError):
        server.client.get(f"{server.url}/health")
