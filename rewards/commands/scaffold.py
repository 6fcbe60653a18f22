"""`uniar-rl rewards new NAME`: a plug-in file that works, a test of it, and the lines for a recipe."""

import argparse
import keyword

from uniar.errors import UserError
from uniar.reading.files import write_whole, writing

TAKEN = ("inference", "rewards", "rl", "uniar")
"""Names of this package's own modules, whose place a file of that name would take."""

PLUGIN = '''\
"""A reward of your own: replace what `score` measures.

Try it:             uniar-rl rewards check {name}.py
                    uniar-rl rewards score {name}.py:{cls} --image PICTURE --prompt "a red kettle"
Test it:            pip install pytest; python -m pytest test_{name}.py
Train with it, in a recipe (the path starts from the recipe's folder):

rewards:
  - use: {name}.py:{cls}
    darkest: 0.1
"""

from PIL import ImageStat

from rewards import Reward, RewardBatch


class {cls}(Reward):
    """How bright a picture is, 0 to 1.

    Args:
        darkest: mean brightness that scores 0; below it too.
    """

    usual_range = (0.0, 1.0)  # for `normalize: true`

    def __init__(self, darkest: float = 0.0) -> None:
        self.darkest = darkest

    def score(self, batch: RewardBatch) -> list[float | None]:
        """A number per sample, in the batch's order; None where the reward does not apply."""
        scores = []
        for prompt, image, metadata in zip(batch.prompts, batch.images, batch.metadata, strict=True):
            brightness = ImageStat.Stat(image.convert("L")).mean[0] / 255
            scores.append(max(0.0, brightness - self.darkest) / (1 - self.darkest))
        return scores
'''

TEST = '''\
"""Pictures whose score is known."""

import pytest
from {name} import {cls}
from PIL import Image

from rewards import RewardBatch


def scores(reward: {cls}, *colours: str) -> list[float | None]:
    images = [Image.new("RGB", (32, 32), colour) for colour in colours]
    return reward.score(RewardBatch(prompts=["a square"] * len(images), images=images))


def test_white_is_bright_and_black_is_not():
    assert scores({cls}(), "white", "black") == [1.0, 0.0]


def test_what_is_darker_than_darkest_scores_0():
    assert scores({cls}(darkest=0.5), "#404040", "white") == [0.0, pytest.approx(1.0)]
'''


def run(arguments: argparse.Namespace) -> None:
    name, folder = arguments.name, arguments.output
    if not name.isidentifier() or not name.isascii() or name != name.lower() or keyword.iskeyword(name):
        raise UserError(f"{name!r} cannot be a module's name; take lower-case letters and _, such as my_reward.")
    if name in TAKEN:
        raise UserError(f"a file {name}.py would take the place of uniar-rl's own package '{name}'; take another name.")
    words = {"name": name, "cls": "".join(word.capitalize() for word in name.split("_"))}
    files = {folder / f"{name}.py": PLUGIN.format(**words), folder / f"test_{name}.py": TEST.format(**words)}
    for file in files:
        if file.exists():
            raise UserError(f"{file} is there already; take another name or --output.")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            write_whole(file, text)
    plugin, test = files
    print(f"written: {plugin}, {test}")
    print(f"try it:  uniar-rl rewards check {plugin}")
    print("in a recipe (the path starts from its folder, or from the current one):\n")
    print(f"rewards:\n  - use: {plugin}:{words['cls']}\n    darkest: 0.1")
