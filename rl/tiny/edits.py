"""Instructions to edit a picture of UniAR-Tiny's world: recolour, add, remove or move one thing.

What an instruction leaves open follows the conventions of `rl.tiny.captions`: a new thing is of medium size, and a
place is meant give or take its jitter. All things of a scene have different shapes, so a shape names one of them. What
the instruction does not name stays as it is, to the pixel.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rl.tiny.captions import LAYOUTS, PLACES, RELATION_LAYOUTS, Place, jittered, named_size, noun
from rl.tiny.questions import directions
from rl.tiny.splits import Split, scene_split, wanted
from rl.tiny.world import BACKGROUNDS, COLORS, SHAPES, USUAL_BACKGROUND, USUAL_COLORS, Scene, Thing

QUADRANTS = LAYOUTS[4]
USUAL_COLORED, USUALLY_BACKED = 0.3, 0.6  # how often a thing has its usual colour, a scene the usual background


@dataclass(frozen=True)
class Edit:
    """An instruction, the scene it is given with and the one it asks for.

    `metadata` is GenEval's (`include`, `exclude`) of the whole target, with `edit`, the kind, a key of KINDS.
    """

    instruction: str
    metadata: dict[str, Any]
    source: Scene
    target: Scene


def edit(rng: random.Random, split: Split | None, kind: str | None = None) -> Edit:
    """An edit whose scenes are of the split, of a kind from KINDS, any where it is None."""
    kind = rng.choice(tuple(KINDS)) if kind is None else kind
    while True:
        made = KINDS[kind](rng)
        if made is not None and wanted(scene_split(made.source, made.target), split):
            return made


def _recolor(rng: random.Random) -> Edit:
    count = rng.randint(1, 4)
    layouts = [LAYOUTS[count], *(RELATION_LAYOUTS.values() if count == 2 else ())]
    source = _source(rng, rng.choice(layouts))
    index = rng.randrange(count)
    thing = source.things[index]
    color = rng.choice([color for color in COLORS if color != thing.color])
    target = _with(source, index, replace(thing, color=color))
    templates = (
        "make {thing} {color}",
        "turn {thing} {color}",
        "paint {thing} {color}",
        "change the color of {thing} to {color}",
        "let {thing} be {color}",
    )
    words = rng.choice(templates).format(thing=_the(rng, thing), color=color)
    return Edit(words, _metadata("recolor", target), source, target)


def _remove(rng: random.Random) -> Edit:
    count = rng.randint(2, 4)
    layouts = [LAYOUTS[count], *(RELATION_LAYOUTS.values() if count == 2 else ())]
    source = _source(rng, rng.choice(layouts))
    index = rng.randrange(count)
    target = _with(source, index, None)
    words = rng.choice(("remove {}", "delete {}", "erase {}", "take {} away")).format(_the(rng, source.things[index]))
    return Edit(words, _metadata("remove", target, absent=source.things[index].shape), source, target)


def _add(rng: random.Random) -> Edit:
    count = rng.randint(1, 3)
    *places, free = rng.sample(QUADRANTS, count + 1)
    source = _source(rng, places)
    shape = rng.choice([shape for shape in SHAPES if shape not in {thing.shape for thing in source.things}])
    size, size_word = named_size(rng)
    thing = jittered(rng, shape, rng.choice(tuple(COLORS)), size, free)
    target = replace(source, things=(*source.things, thing))
    phrase = f"{noun(size_word, thing.color, shape)} {rng.choice(PLACES[free])}"
    words = rng.choice(("add {}", "put {}", "place {}", "also draw {}")).format(phrase)
    return Edit(words, _metadata("add", target), source, target)


def _move(rng: random.Random) -> Edit | None:
    """None where the metadata could not tell the moved thing from an unmoved one."""
    *places, free = rng.sample(QUADRANTS, rng.randint(3, 4))
    source = _source(rng, places)
    index = rng.randrange(len(places))
    thing = source.things[index]
    moved = jittered(rng, thing.shape, thing.color, thing.size, free)
    target = _with(source, index, moved)
    others = [other for other in source.things if other is not thing]
    new = [
        (relation, other.shape)
        for other in others
        for relation in directions(moved, other)
        if relation not in directions(thing, other)
    ]
    if not new:
        return None
    place = rng.choice(PLACES[free]).removeprefix("in ")
    words = rng.choice(("move {} to {}", "shift {} to {}", "put {} in {}")).format(_the(rng, thing), place)
    return Edit(words, _metadata("move", target, moved=(moved.shape, *rng.choice(new))), source, target)


def _source(rng: random.Random, places: tuple[Place, ...] | list[Place]) -> Scene:
    """Things of different shapes at the given places."""
    things = []
    for shape, place in zip(rng.sample(SHAPES, len(places)), places, strict=True):
        color = USUAL_COLORS[shape] if rng.random() < USUAL_COLORED else rng.choice(tuple(COLORS))
        things.append(jittered(rng, shape, color, named_size(rng)[0], place))
    background = USUAL_BACKGROUND if rng.random() < USUALLY_BACKED else rng.choice(tuple(BACKGROUNDS))
    return Scene(tuple(things), background)


def _with(scene: Scene, index: int, thing: Thing | None) -> Scene:
    """The scene with another thing, or none, in the place of one."""
    things = (*scene.things[:index], *([] if thing is None else [thing]), *scene.things[index + 1 :])
    return replace(scene, things=things)


def _the(rng: random.Random, thing: Thing) -> str:
    return f"the {thing.color} {thing.shape}" if rng.random() < 0.3 else f"the {thing.shape}"


def _metadata(
    kind: str, target: Scene, absent: str | None = None, moved: tuple[str, str, str] | None = None
) -> dict[str, Any]:
    """Asks for exactly the target's things. absent: a shape that must be gone; moved: (shape, relation, shape)."""
    things = sorted(target.things, key=lambda thing: moved is not None and thing.shape == moved[0])  # others first
    shapes = [thing.shape for thing in things]
    include: list[dict[str, Any]] = [{"class": thing.shape, "count": 1, "color": thing.color} for thing in things]
    if moved is not None:
        shape, relation, other = moved
        include[shapes.index(shape)]["position"] = [relation, shapes.index(other)]
    exclude = [{"class": shape, "count": 2} for shape in shapes]
    if absent is not None:
        exclude.append({"class": absent, "count": 1})
    return {"edit": kind, "include": include, "exclude": exclude}


KINDS: dict[str, Callable[[random.Random], Edit | None]] = {
    "recolor": _recolor,
    "add": _add,
    "remove": _remove,
    "move": _move,
}
"""Each kind's maker of edits."""
