"""What tests of `uniar-rl rewards …` share: a folder to type commands in, and what the commands say there."""

from PIL import Image

PLUGIN = '''
"""Rewards of a user."""

from rewards import Reward


class Darkness(Reward):
    """How dark a picture is.

    Args:
        scale: what black counts. It may be
            any number.
        kind, floor: both have the same help.
    """

    usual_range = (0.0, 1.0)

    def __init__(self, scale: float = 1.0, kind: str | None = None, floor: float = 0.0):
        self.scale = scale

    async def score(self, batch):
        scores = []
        for image, metadata, task in zip(batch.images, batch.metadata, batch.tasks, strict=True):
            if metadata.get("broken"):
                raise ValueError("it is broken")
            dark = self.scale * (1 - image.convert("L").getpixel((0, 0)) / 255)
            scores.append(None if metadata.get("skip") else {"score": dark, "why": f"{task}: {metadata.get('text')}"})
        return scores


def length(prompts, images, factor: int = 1, **columns):
    """Letters of the prompt."""
    return [factor * len(prompt) for prompt in prompts]
'''


def fill(folder):
    """A plug-in, and pictures that are black, grey and white."""
    (folder / "mine.py").write_text(PLUGIN)
    (folder / "drawn").mkdir()
    for name, grey in (("b.png", 255), ("a.jpg", 0), ("c.webp", 51)):
        Image.new("RGB", (16, 16), (grey,) * 3).save(folder / "drawn" / name, lossless=True)
    return folder


def refused(typed, *words):
    """The one sentence with which a command refuses."""
    status, said = typed(*words)
    assert status == 2
    assert said.startswith("uniar-rl rewards: ")
    return said.strip().splitlines()[-1]
