"""Two ways of sharing an update's or an evaluation's work out among GPUs, simulated from computed times.

    python benchmarks/sharing.py

Processes that decode for others (`decode.processes`) beside none; an evaluation shared out in its batches beside full
batches and beside one shared out by sample. Times are those of an H100 by a roofline (benchmarks/RESULTS.md, "The
released size, computed"); what is sent, and what rewards take, is left out. Nothing here is measured.
"""

import math
import sys
from pathlib import Path

# The folder of this script comes first, where rewards.py would be taken for the package.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

from rl.distributed.sharing import even_batches, fixed_batches  # noqa: E402

STEP, STEP_OF_A_ROW = 0.0080, 0.0000165
"""seconds of a step of the rollout: of its weights, and of each row's cache, half filled"""
TOKENS, SAMPLES_PER_PROMPT = 256, 4
REPLAY, UPDATE = 0.0776 / 8, 0.2245 / 8
"""seconds per image, in micro-batches of 8"""
DECODING_STEP, PAINTING = 0.0817 / 16, 0.0487 / 16
"""seconds per image of the SD3 transformer and of the autoencoder, 16 at once"""


def drawing(rows: float) -> float:
    return TOKENS * (STEP + rows * STEP_OF_A_ROW)


def decoding(images: float, steps: int) -> float:
    return images * (steps * DECODING_STEP + PAINTING)


def update(images: int, gpus: int, decoders: int) -> float:
    """Seconds of an update. Those that decode begin when all is drawn and end before the loss; meanwhile the others
    replay, and without any each decodes its own images."""
    own = images / (gpus - decoders)
    replay = own * REPLAY
    scored = max(replay, decoding(images / decoders, 14)) if decoders else replay + decoding(own, 14)
    return drawing(own) + scored + own * UPDATE


def evaluation(batches: list[float], gpus: int) -> float:
    """Seconds of the process that ends last. batches: their samples, drawn guided: two rows for each."""
    return max(sum(drawing(2 * size) + decoding(size, 28) for size in batches[first::gpus]) for first in range(gpus))


def batches_of(samples: int, size: int, gpus: int) -> tuple[list[float], ...]:
    """Full ones, even ones as evaluations have them, and one or more for each GPU, as if shared out by sample."""
    full, even = (
        [float(len(batch)) for batch in made]
        for made in (fixed_batches(samples, size), even_batches(samples, size, SAMPLES_PER_PROMPT))
    )
    rounds = math.ceil(samples / size / gpus)
    return full, even, [samples / gpus / rounds] * (gpus * rounds)


def markdown(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def main() -> None:
    rows = [["8 GPUs, of them decode", "seconds per update of 512 images", "times as long"]]
    for decoders in (0, 1, 2, 3, 4):
        taken = update(512, 8, decoders)
        rows.append([str(decoders or "none"), f"{taken:.1f}", f"{taken / update(512, 8, 0):.1f}"])
    print(markdown(rows), end="\n\n")
    for samples in (96, 480):
        rows = [[f"{samples} samples, GPUs", "batches of 16: s", "even batches: s", "by sample: s"]]
        for gpus in (1, 2, 4, 8, 16):
            rows.append([str(gpus), *(f"{evaluation(each, gpus):.1f}" for each in batches_of(samples, 16, gpus))])
        print(markdown(rows), end="\n\n")


if __name__ == "__main__":
    main()
