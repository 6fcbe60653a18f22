"""Which combinations of the world are for training and which are held out.

A *combination* is what makes a compositional drawing what it is:

| skill | combination | held out |
| --- | --- | --- |
| colors | (shape, colour) | about 1 in 5, never a shape's usual colour |
| two_object | {shape, shape} | about 1 in 5 |
| position | (shape, relation, shape); "a left of b" and "b right of a" are the same | about 1 in 5 |
| color_attr | {(shape, colour), (shape, colour)} | about 1 in 5 |

The larger ones have smaller ones as parts. A drawing is for training if neither its combination nor any part is held
out, and held out if its combination is, but none of its parts: what is new in it is the combination itself. What
remains belongs to neither split. So a held-out combination occurs nowhere in training, not even inside another skill.

Drawings without a combination (single_object, counting) are split by their text: no text occurs in both splits.
Pictures for questions and edits are for training if they have no held-out (shape, colour), else held out.

Training is meant as reinforcement learning. UniAR-Tiny's pretraining keeps to the split in stage `policy`; its last two
stages show all combinations, as no reward can teach a model what it never draws.
"""

import hashlib
from functools import cache
from typing import Literal

from rl.tiny.world import USUAL_COLORS, Scene

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")

OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

PART = 5  # one in so many is held out
SALTS = {"color": 1006, "pair": 203, "position": 1100, "color_attr": 0, "text": 0}
"""What each kind is hashed with: the first numbers that leave every shape, colour and relation in both splits, none of
them held out much more often than another."""


def wanted(found: Split | None, split: Split | None) -> bool:
    """Whether what belongs to `found` may be taken for `split`; None takes all, also what belongs to neither."""
    return split is None or found == split


def color_split(shape: str, color: str) -> Split:
    """Of a shape in a colour."""
    return "held_out" if color != USUAL_COLORS[shape] and _drawn("color", shape, color) else "train"


def pair_split(a: str, b: str) -> Split:
    """Of two different shapes together."""
    return "held_out" if _drawn("pair", *sorted((a, b))) else "train"


def position_split(a: str, relation: str, b: str) -> Split | None:
    """Of shape `a` in one of GenEval's four relations to another shape `b`; None: in neither split."""
    if relation in ("right of", "below"):
        a, relation, b = b, OPPOSITES[relation], a
    return None if pair_split(a, b) == "held_out" else _split("position", a, relation, b)


def color_attr_split(a: tuple[str, str], b: tuple[str, str]) -> Split | None:
    """Of two different shapes, each (shape, colour), together; None: in neither split."""
    if "held_out" in (color_split(*a), color_split(*b), pair_split(a[0], b[0])):
        return None
    return _split("color_attr", *(" ".join(each) for each in sorted((a, b))))


def text_split(text: str) -> Split:
    """Of a caption that has no combination."""
    return _split("text", text)


def scene_split(*scenes: Scene) -> Split:
    """Of pictures that questions or edits are about."""
    pairs = [color_split(thing.shape, thing.color) for scene in scenes for thing in scene.things]
    return "held_out" if "held_out" in pairs else "train"


def _split(*words: str) -> Split:
    return "held_out" if _drawn(*words) else "train"


@cache
def _drawn(*words: str) -> bool:
    digest = hashlib.sha256(repr((SALTS[words[0]], *words)).encode()).digest()
    return int.from_bytes(digest[:8], "big") % PART == 0
