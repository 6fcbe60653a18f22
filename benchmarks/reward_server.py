"""Images per second that a reward server scores for 1, 4 and 16 clients, on this machine.

The server is a process of its own (`uniar-rl rewards serve`); the clients are threads of this one, each with one
request at a time in flight over a connection that is kept, and send drawn images as PNG until the time is up. They pack
them once, since other machines would; what packing costs is measured apart. The server's CPU time stands beside its
rate, because other work on the machine changes it less. Two rewards are asked:

- `compressibility`, a few milliseconds of work an image on the CPU: what serving costs where scoring is cheap.
- `steady`, which takes 50 ms per batch whatever its size, as a model on a GPU about does: what it gains when the
requests
  of several clients are scored together.

    python benchmarks/reward_server.py
    python benchmarks/reward_server.py --clients 1 8 64 --seconds 20 --batch-size 16
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
from PIL import Image

# The folder of this script comes first, where rewards.py would be taken for the package.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

from rewards import RewardBatch  # noqa: E402
from rewards.remote.wire import encode_request, read_answer  # noqa: E402

SERVED = """
rewards:
  - compressibility
  - use: "steady.py:steady"
"""
STEADY = """
import time

def steady(prompts, images):
    time.sleep(0.05)
    return [0.5] * len(images)
"""


@contextlib.contextmanager
def server() -> Iterator[tuple[str, int]]:
    """URL and process id of a server that ends with the block."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "rewards.yaml").write_text(SERVED)
        (Path(folder) / "steady.py").write_text(STEADY)
        process = subprocess.Popen(
            [sys.executable, "-m", "rl.cli", "rewards", "serve", "rewards.yaml", "--port", "0"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield next(line.split()[-1] for line in process.stdout if line.startswith("serving ")), process.pid
        finally:
            process.terminate()
            process.wait()


def drawn(count: int, size: int) -> list[Image.Image]:
    """Smooth random images with some noise, as large as PNG as drawn ones usually are."""
    generator = np.random.default_rng(0)
    images = []
    for _ in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=int)
        images.append(Image.fromarray((smooth + generator.integers(-4, 5, smooth.shape)).clip(0, 255).astype(np.uint8)))
    return images


def cpu_seconds(process: int) -> float:
    """That a process has used so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(
    url: str, process: int, reward: str, clients: int, batch: RewardBatch, seconds: float
) -> tuple[float, float, float, float]:
    """Images per second of all clients together, the median and 95th percentile of a request's seconds, and the
    server's seconds of CPU per image."""
    ready, times = threading.Barrier(clients + 1), [[] for _ in range(clients)]
    body, failures = encode_request(batch, [reward]), []

    def client(number: int) -> None:
        try:
            with httpx2.Client(
                timeout=600, trust_env=False, headers={"Content-Type": "application/json"}
            ) as connection:

                def ask() -> None:
                    answer = connection.post(f"{url}/v1/score", content=body).raise_for_status()
                    assert all(isinstance(score, float) for score in read_answer(answer.content, reward, len(batch)))

                ask()
                ready.wait()
                end = time.perf_counter() + seconds
                while (started := time.perf_counter()) < end:
                    ask()
                    times[number].append(time.perf_counter() - started)
        except Exception as error:
            failures.append(error)
            ready.abort()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    with contextlib.suppress(threading.BrokenBarrierError):
        ready.wait()
    started, used = time.perf_counter(), cpu_seconds(process)
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    whole = time.perf_counter() - started
    every = sorted(second for own in times for second in own)
    images = len(every) * len(batch)
    late = every[int(0.95 * (len(every) - 1))]
    return images / whole, statistics.median(every), late, (cpu_seconds(process) - used) / images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each figure; default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=8, help="images per request; default: %(default)s")
    parser.add_argument("--size", type=int, default=512, help="of an image's side; default: %(default)s")
    options = parser.parse_args()
    images = drawn(options.batch_size, options.size)
    batch = RewardBatch(["a red cat"] * len(images), images)
    packing = time.process_time()
    kilobytes = len(encode_request(batch, ["x"])) / len(images) / 1000
    packing = 1000 * (time.process_time() - packing) / len(images)
    print(f"{options.size}×{options.size}, {options.batch_size} a request, {kilobytes:.0f} kB each on the wire")
    print(f"a client packs an image in {packing:.1f} ms of CPU")
    print("| reward | clients | images per second | request, median | 95 % | CPU of the server per image |")
    print("| --- | --- | --- | --- | --- | --- |")
    with server() as (url, process):
        for reward in ("compressibility", "steady"):
            for clients in options.clients:
                rate, *times = measure(url, process, reward, clients, batch, options.seconds)
                shown = " | ".join(f"{1000 * seconds:.3g} ms" for seconds in times)
                print(f"| `{reward}` | {clients} | {rate:.0f} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
