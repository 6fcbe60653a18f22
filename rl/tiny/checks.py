"""What is wrong with a picture that was drawn for a caption, in words, and the picture that puts it right.

The text is what the episode `draw_check_redraw` lets a model write and then edit by. It is "nothing" where GenEval's
strict credit finds all there; sizes, backgrounds and what else that credit does not look at may then differ. Else it
names what differs from the scene of the caption, in the words of edits ("make the circle red, remove the blue square"),
or is "everything" where that is much, or could be said of several things: the picture had better be drawn anew.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from rewards.geneval.clauses import Detection, strict_credit
from rewards.geneval.request import read_request
from rl.episodes.draw_check_redraw import QUESTION
from rl.tiny.captions import JITTER, PLACES, Drawing, drawing, jittered, noun
from rl.tiny.splits import Split
from rl.tiny.world import COLORS, SHAPES, USUAL_SIZE, Scene, Thing, apart, is_inside

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
    return checked(asked, shown)


def checked(asked: Drawing, shown: Scene) -> Check:
    """What is to be said of a picture of a scene for a caption, and the picture put right."""
    found = _faults(asked, shown)
    if not found:
        return Check(asked.prompt, shown, NOTHING, shown)
    clear = len(found) <= MOST and all(_is_clear(shown, *fault) for fault in found)
    redrawn = _put_right(shown, found) if clear else None
    if redrawn is None:
        return Check(asked.prompt, shown, EVERYTHING, asked.scene)
    return Check(asked.prompt, shown, ", ".join(_described(*fault) for fault in found), redrawn)


def _faults(asked: Drawing, shown: Scene) -> list[Fault]:
    """What has to change in a picture before it is what the caption asks for; none where strict credit is 1 already,
    whichever of several things of a shape it looks at first."""
    request = read_request(asked.metadata, SHAPES, tuple(COLORS))
    assert request is not None
    orders = (shown.things, shown.things[::-1])
    if all(strict_credit(request, _detections(things)).score == 1 for things in orders):
        return []
    left, found = list(shown.things), []
    for thing in sorted(asked.scene.things, key=lambda thing: not _has(left, thing)):
        like = [other for other in left if other.shape == thing.shape and _difference(other, thing) <= 1]
        if sum(other.shape == thing.shape for other in shown.things) > 1:  # "the circle" would be no name
            like = [other for other in like if not _difference(other, thing)]
        nearest = min(like, key=lambda other: _difference(other, thing), default=None)
        if nearest is not None:
            left.remove(nearest)
        if nearest is None or _difference(nearest, thing):
            found.append((nearest, thing))
    return found + [(thing, None) for thing in left]


def _is_clear(shown: Scene, before: Thing | None, after: Thing | None) -> bool:
    """Whether the thing that a fault is about can be named: one that is removed by its colour and shape."""
    if before is None or after is not None:
        return True
    return sum((thing.shape, thing.color) == (before.shape, before.color) for thing in shown.things) == 1


def _described(shown: Thing | None, asked: Thing | None) -> str:
    if asked is None:
        assert shown is not None
        return f"remove the {shown.color} {shown.shape}"
    if shown is None:
        return f"add {noun(asked.color, asked.shape)} {_place(asked)}"
    if shown.color != asked.color:
        return f"make the {shown.shape} {asked.color}"
    return f"move the {shown.shape} to {_place(asked).split(maxsplit=1)[1]}"  # "at the top" → "the top"


def _put_right(shown: Scene, found: Sequence[Fault]) -> Scene | None:
    """The picture after what is said of it, all else as it was; None where things would then be too close."""
    things = list(shown.things)
    for before, after in found:
        if before is not None:
            things.remove(before)
        if after is None:
            continue
        if before is None:
            things.append(after)
        elif before.color != after.color:
            things.append(replace(before, color=after.color))
        else:
            things.append(replace(before, x=after.x, y=after.y))
    fit = all(is_inside(thing) for thing in things) and all(apart(*pair) for pair in combinations(things, 2))
    return replace(shown, things=tuple(things)) if fit else None


def _spoiled(rng: random.Random, scene: Scene, count: int) -> Scene:
    """The scene with up to `count` changes: a colour, a shape, a place, a thing less, a thing more."""
    things = list(scene.things)
    for _ in range(count):
        what = rng.choice(("color", "shape", "place", "less", "more"))
        index = rng.randrange(len(things))
        thing = things[index]
        others = [*things[:index], *things[index + 1 :]]
        if what == "color":
            changed = [*others, replace(thing, color=rng.choice([color for color in COLORS if color != thing.color]))]
        elif what == "shape":
            changed = [*others, replace(thing, shape=rng.choice([shape for shape in SHAPES if shape != thing.shape]))]
        elif what == "place":
            changed = [*others, jittered(rng, thing.shape, thing.color, thing.size, rng.choice(tuple(PLACES)))]
        elif what == "less":
            changed = others
        else:
            look = (rng.choice(SHAPES), rng.choice(tuple(COLORS)), USUAL_SIZE)
            changed = [*things, jittered(rng, *look, rng.choice(tuple(PLACES)))]
        if 1 <= len(changed) <= 4 and all(apart(*pair) for pair in combinations(changed, 2)):
            things = changed
    return replace(scene, things=tuple(things))


def _detections(things: Sequence[Thing]) -> dict[str, list[Detection]]:
    return {shape: [Detection(thing.box, thing.color) for thing in things if thing.shape == shape] for shape in SHAPES}


def _has(things: Sequence[Thing], wanted: Thing) -> bool:
    return any(thing.shape == wanted.shape and not _difference(thing, wanted) for thing in things)


def _difference(shown: Thing, asked: Thing) -> int:
    """Of two things of a shape: 0, 1 for another colour or another place, 2 for both."""
    return (shown.color != asked.color) + (not _near(shown, asked))


def _near(a: Thing, b: Thing) -> bool:
    return max(abs(a.x - b.x), abs(a.y - b.y)) <= 4 * JITTER


def _place(thing: Thing) -> str:
    """The name of the place that a thing is nearest to."""
    return PLACES[min(PLACES, key=lambda place: abs(place[0] - thing.x) + abs(place[1] - thing.y))][0]
