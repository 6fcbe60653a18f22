"""The server as a process of its own with few files, while others only take up room: its clients are served, and its
log and its memory stay small."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest
from support.served_rewards import noise, png, sample, text

from rewards.remote.wire_images import Limits

ROOT = Path(__file__).parents[2]
TOKEN = "correct horse battery staple"
HEAD = "POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
REWARDS = "rewards: [color, sharpness, compressibility]\n"


class Served(NamedTuple):
    url: str
    process: subprocess.Popen
    log: Path

    def memory(self, which: str) -> int:
        """Bytes: "VmRSS" now, "VmHWM" at most so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(next(line for line in status.splitlines() if line.startswith(which)).split()[1])

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)


@contextmanager
def served(folder: Path, files: int, *options: str, token: str = ""):
    """`uniar-rl rewards serve` in a shell that allows so many open files."""
    (folder / "rewards.yaml").write_text(REWARDS.replace("color", "{use: color, color: red}"))
    log = folder / "log.txt"
    command = [sys.executable, "-m", "rl.cli", "rewards", "serve", "rewards.yaml", "--port", "0", *options]
    shell = f"ulimit -n {files}; exec {' '.join(command)}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "UNIAR_REWARDS_TOKEN": token}
    with log.open("w") as errors:
        process = subprocess.Popen(
            ["bash", "-c", shell], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        yield Served(next(line.split()[-1] for line in process.stdout if line.startswith("serving ")), process, log)
    finally:
        process.kill()
        process.wait()


class Attack:
    """Connections that are opened anew whenever they are closed: some send nothing or half a head, some a byte per
    second of a head or of a body. `ended`: how often the server closed one."""

    def __init__(self, address: tuple[str, int], half_open: int, slow: int):
        self.address, self.half_open, self.slow = address, half_open, slow
        self.ended, self.opened, self.tried = 0, 0, threading.Event()
        self._stop = threading.Event()

    def __enter__(self):
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self.tried.wait(60)
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(20)

    async def _run(self):
        kinds = [(b"", b"") if n % 2 else (HEAD[:40].encode(), b"") for n in range(self.half_open)]
        kinds += [(HEAD.encode(), b" ") if n % 2 else (HEAD[:20].encode(), b"a") for n in range(self.slow)]
        tasks = [asyncio.create_task(self._hold(*kind)) for kind in kinds]
        while not self._stop.is_set():
            await asyncio.sleep(0.1)
            if self.opened >= len(kinds):
                self.tried.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _hold(self, first: bytes, drip: bytes):
        while True:
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(*self.address)
                self.opened += 1
                try:
                    writer.write(first)
                    while True:
                        with suppress(TimeoutError):
                            async with asyncio.timeout(1):
                                if not await reader.read(1000):
                                    break
                        writer.write(drip)
                    self.ended += 1
                except ConnectionError:
                    self.ended += 1
                finally:
                    writer.transport.abort()
            await asyncio.sleep(0.2)


def score(url: str, images: int, token: str = "", kept: httpx2.Client | None = None, size: int = 64) -> int:
    """Images that were scored, 8 per request, each request over a connection of its own unless one is kept, and asked
    again where the server was busy or hung up."""
    body = {"samples": [sample(image=text(png(noise(size))))] * 8}
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    done, deadline = 0, time.monotonic() + 120
    while done < images and time.monotonic() < deadline:
        try:
            client = kept or httpx2.Client(timeout=60, trust_env=False)
            answer = client.post(f"{url}/v1/score", json=body, headers=headers)
        except (httpx2.NetworkError, httpx2.RemoteProtocolError):
            continue
        finally:
            if kept is None:
                client.close()
        if answer.status_code == 200:
            done += sum(isinstance(score, float) for score in answer.json()["scores"]["sharpness"])
    return done


def besiege(server: Served, *, files: int, half_open: int, slow: int, images: int, token: str = "") -> None:
    """Half of the images are scored over a connection that is kept, half over a new one per request."""
    with httpx2.Client(timeout=60, trust_env=False) as kept:
        score(server.url, 8, token, kept)
        before, started = server.memory("VmRSS"), time.monotonic()
        server.forget_peak()
        with Attack(server.address, half_open, slow) as attack:
            found = score(server.url, images // 2, token, kept), score(server.url, images // 2, token)
            seconds = time.monotonic() - started
            most = len(os.listdir(f"/proc/{server.process.pid}/fd"))
    log, growth = server.log.stat().st_size, server.memory("VmHWM") - before
    print(f"{found} images scored in {seconds:.1f} s beside {attack.opened} connections, {attack.ended} of them ended")
    print(f"by the server; {most} open files of {files}, log {log} bytes, memory +{growth / 1e6:.1f} MB at most")
    assert sum(found) >= images
    assert most < files
    assert attack.ended
    assert log < 1_000_000
    assert "Too many open files" not in server.log.read_text()
    assert growth < 100e6


def crowd(server: Served, bodies: list[bytes], most: float, token: str = "") -> None:
    """All bodies at once, again where the server says later, until all have scores."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    with httpx2.Client(timeout=300, trust_env=False, headers=headers) as client:
        score(server.url, 8, token, client)  # what is imported and made at the first request is none of the growth
        before, later = server.memory("VmRSS"), []
        server.forget_peak()

        def ask(body: bytes) -> list[float]:
            while (answer := client.post(f"{server.url}/v1/score", content=body)).status_code == 429:
                later.append(answer.headers["Retry-After"])
                time.sleep(float(later[-1]))
            return answer.raise_for_status().json()["scores"]["sharpness"]

        started = time.monotonic()
        with ThreadPoolExecutor(len(bodies)) as pool:
            scores = list(pool.map(ask, bodies))
        growth, kept = (server.memory(which) - before for which in ("VmHWM", "VmRSS"))
    seconds = time.monotonic() - started
    print(f"{len(bodies)} bodies of {len(bodies[0]) / 1e6:.0f} MB in {seconds:.0f} s, {len(later)} sent back;")
    print(f"memory +{growth / 1e6:.0f} MB at most of {most / 1e6:.0f}, +{kept / 1e6:.0f} MB after")
    assert all(isinstance(value, float) for part in scores for value in part)
    assert growth < most


def body_of(*sides: int) -> bytes:
    """A request with pictures of noise, which no packing makes smaller."""
    images = [text(png(noise(side), compress_level=0)) for side in sides]
    return json.dumps({"samples": [sample(image=image) for image in images]}).encode()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    with served(tmp_path_factory.mktemp("small"), 320, "--max-memory-mb", "100") as server:
        yield server


def test_who_only_connects_does_not_displace_a_client(small):
    besiege(small, files=320, half_open=340, slow=60, images=48)


def test_bodies_that_come_at_once_take_no_more_memory_than_they_may(small):
    crowd(small, [body_of(1100)] * 8, 100e6 + 30e6)  # what is kept of small pieces comes on top


@pytest.mark.slow
@pytest.mark.parametrize("token", ["", TOKEN])
def test_1100_half_open_and_200_slow_connections_beside_500_images(tmp_path, token):
    with served(tmp_path, 1024, token=token) as server:
        besiege(server, files=1024, half_open=1100, slow=200, images=504, token=token)


@pytest.mark.slow
@pytest.mark.parametrize("sides", [(3240,), (1145,) * 8], ids=["one picture", "eight pictures"])
@pytest.mark.parametrize("token", ["", TOKEN])
def test_16_bodies_of_42_megabytes_at_once(tmp_path, sides, token):
    body = body_of(*sides)
    assert 41e6 < len(body) < 43e6
    with served(tmp_path, 1024, token=token) as server:
        crowd(server, [body] * 16, Limits.resident_bytes, token)
