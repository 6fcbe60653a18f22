"""What tests of rewards behind a server share: samples that a good server can tell apart, and how long scoring took."""

import time

from PIL import Image

from rewards import RewardBatch

DEADLINE = 1.5
ENOUGH = 30  # seconds, where the deadline is not what a test is about


def make_batch(count=6, **entries):
    """Sample number n of the batch is worth n: its prompt and its red say so."""
    images = [Image.new("RGB", (4, 4), (index, 0, 0)) for index in range(count)]
    return RewardBatch([f"prompt {index}" for index in range(count)], images, **entries)


def red_channel(image):
    return float(image.getpixel((0, 0))[0])


def score(suite, batch):
    """The table, and the seconds it took once the rewards were loaded."""
    suite.load()
    started = time.monotonic()
    try:
        return suite.score(batch), time.monotonic() - started
    finally:
        suite.close()
