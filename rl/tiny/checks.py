"""What is wrong with a picture that was drawn for a caption, in words, and the picture that puts it right.

The text is what the episode `draw_check_redraw` lets a model write and then edit by. It names what the caption asks for
and the picture lacks, in the words of edits ("make the circle red, remove the square"); "nothing" where GenEval's
strict credit finds all there, as no caption asks for more; "everything" where so much is wrong that the picture had
better be drawn anew.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rewards.geneval.clauses import Detection, strict_credit
from rewards.geneval.request import read_request
from rl.episodes.draw_check_redraw import QUESTION
from rl.tiny.captions import JITTER, PLACES, Drawing, drawing, jittered, noun
from rl.tiny.splits import Split
from rl.tiny.world import COLORS, SHAPES, USUAL_SIZE, Scene, Thing, apart

NOTHING, EVERYTHING = "nothing", "everything"
MOST = 2  # faults that are named one by one

Fault = tuple[Thing | None, Thing | None]
"""A thing that is shown and the one that was asked for in its place; None where nothing is."""


@dataclass(frozen=True)
class Check:
    """A caption, a picture that may have been drawn for it, what is wrong with it, and the picture put right."""

    prompt: str
    shown: Scene
    found: str
    redrawn: Scene

    @property
    def question(self) -> str:
        return QUESTION.format(self.prompt)

    @property
    def instruction(self) -> str:
        """The text that the redrawing starts from."""
        return f"{self.prompt}\n{self.found}"


def check(rng: random.Random, split: Split | None) -> Check:
    """A caption of the split with a picture: one time in three the right one, else one with a fault or two, or one of
    another caption of the same skill."""
    asked = drawing(rng, split)
    kind = rng.choice(("right", "faulty", "other"))
    if kind == "right":
        shown = asked.scene
    elif kind == "faulty":
        shown = _spoiled(rng, asked.scene, rng.randint(1, MOST))
    else:
        shown = drawing(rng, split, asked.metadata["tag"]).scene
    found = faults(asked, shown)
    return Check(asked.prompt, shown, described(found), _put_right(rng, asked, shown, found))


def faults(asked: Drawing, shown: Scene) -> list[Fault]:
    """What has to change in a picture before it is what the caption asks for; none where strict credit is 1 already."""
    request = read_request(asked.metadata, SHAPES, tuple(COLORS))
    assert request is not None
    if strict_credit(request, _detections(shown)).score == 1:
        return []
    left, found = list(shown.things), []
    for thing in sorted(asked.scene.things, key=lambda thing: not _has(left, thing)):
        same = [other for other in left if other.shape == thing.shape]
        nearest = min(same, key=lambda other: _difference(other, thing), default=None)
        if nearest is not None:
            left.remove(nearest)
        if nearest is None or _difference(nearest, thing):
            found.append((nearest, thing))
    return found + [(thing, None) for thing in left]


def described(found: Sequence[Fault]) -> str:
    """Faults in the words of edits."""
    if not found:
        return NOTHING
    if len(found) > MOST:
        return EVERYTHING
    return ", ".join(_described(*fault) for fault in found)


def _described(shown: Thing | None, asked: Thing | None) -> str:
    if asked is None:
        assert shown is not None
        return f"remove the {shown.color} {shown.shape}"
    if shown is None:
        return f"add {noun(asked.color, asked.shape)} {_place(asked)}"
    if shown.color != asked.color:
        return f"make the {shown.shape} {asked.color}"
    return f"move the {shown.shape} to {_place(asked).split(maxsplit=1)[1]}"  # "at the top" → "the top"


def _put_right(rng: random.Random, asked: Drawing, shown: Scene, found: Sequence[Fault]) -> Scene:
    """What no fault is about stays as it is, to the pixel, unless everything is wrong or the new things do not fit."""
    if len(found) > MOST:
        return asked.scene
    things = list(shown.things)
    for before, after in found:
        if before is not None:
            things.remove(before)
        if after is not None:
            keeps_place = before is not None and _near(before, after)
            things.append(after if before is None or not keeps_place else replace(before, color=after.color))
    fits = all(apart(a, b, gap=0) for index, a in enumerate(things) for b in things[:index])
    return replace(shown, things=tuple(things)) if fits else asked.scene


def _spoiled(rng: random.Random, scene: Scene, count: int) -> Scene:
    """The scene with `count` changes: a colour, a shape, a place, a thing less, a thing more."""
    things = list(scene.things)
    for _ in range(count):
        what = rng.choice(("color", "shape", "place", "less", "more"))
        index = rng.randrange(len(things))
        thing = things[index]
        free = [place for place in PLACES if all(apart(replace(thing, x=place[0], y=place[1]), it) for it in things)]
        if what == "color":
            things[index] = replace(thing, color=rng.choice([color for color in COLORS if color != thing.color]))
        elif what == "shape":
            things[index] = replace(thing, shape=rng.choice([shape for shape in SHAPES if shape != thing.shape]))
        elif what == "place" and free:
            things[index] = jittered(rng, thing.shape, thing.color, thing.size, rng.choice(free))
        elif what == "less" and len(things) > 1:
            things.pop(index)
        elif free and len(things) < 4:
            things.append(jittered(rng, rng.choice(SHAPES), rng.choice(tuple(COLORS)), USUAL_SIZE, rng.choice(free)))
    return replace(scene, things=tuple(things))


def _detections(scene: Scene) -> dict[str, list[Detection]]:
    return {
        shape: [Detection(thing.box, thing.color) for thing in scene.things if thing.shape == shape] for shape in SHAPES
    }


def _has(things: Sequence[Thing], wanted: Thing) -> bool:
    return any(thing.shape == wanted.shape and not _difference(thing, wanted) for thing in things)


def _difference(shown: Thing, asked: Thing) -> int:
    """0 where a thing is as it was asked for; 1 for another place, 2 for another colour, 3 for both."""
    return 2 * (shown.color != asked.color) + (not _near(shown, asked))


def _near(a: Thing, b: Thing) -> bool:
    return max(abs(a.x - b.x), abs(a.y - b.y)) <= 4 * JITTER


def _place(thing: Thing) -> str:
    """The name of the place that a thing is nearest to."""
    return PLACES[min(PLACES, key=lambda place: abs(place[0] - thing.x) + abs(place[1] - thing.y))][0]
