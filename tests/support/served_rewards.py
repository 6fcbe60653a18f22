"""What tests of the reward server share: rewards that it serves, samples, and sending them."""

import base64
import io
import threading
from contextlib import contextmanager

import numpy as np
from PIL import Image

from rewards import Reward, RewardSpec, RewardSuite
from rewards.serving.connections import build_server
from rewards.serving.server import bind


class Red(Reward):
    """The red channel, 0 to 255, of the first pixel; none for prompts that say so; fails on others that say so."""

    def score(self, batch):
        if any("fail" in prompt for prompt in batch.prompts):
            raise ValueError("asked to fail")
        return [
            None if "none" in prompt else {"score": image.getpixel((0, 0))[0], "why": f"saw {prompt}"}
            for prompt, image in zip(batch.prompts, batch.images, strict=True)
        ]


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


def suite_of(**rewards):
    """Name → a class, or a reward that was made already."""
    suite = RewardSuite([RewardSpec(r if isinstance(r, type) else Red, name=n, retries=0) for n, r in rewards.items()])
    suite.rewards = tuple(
        made if isinstance(given, type) else given for made, given in zip(suite.rewards, rewards.values(), strict=True)
    )
    suite.load()
    return suite


def post(client, url, content, **options):
    return client.post(f"{url}/v1/score", json=content, **options)


@contextmanager
def running(app):
    """Serves on a free port of this machine from a thread, as long as the block lasts; gives the URL."""
    listener = bind("127.0.0.1", 0)
    listener.listen(128)
    server = build_server(app, 5, app.state.limits)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="reward server")
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
