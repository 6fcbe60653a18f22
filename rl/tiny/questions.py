"""Questions about pictures of UniAR-Tiny's world, with one right answer of one or two words each.

A thing is only asked about by a name that fits nothing else in the picture, and about places only where they are clear.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from rl.tiny.captions import RELATION_WORDS, drawing, noun, plural
from rl.tiny.splits import OPPOSITES, Split, color_split, scene_split, wanted
from rl.tiny.world import COLORS, SHAPES, SIDE, Scene, Thing, free_scene

NUMBER_WORDS = ("zero", "one", "two", "three", "four")
DRAWN = 1 / 3  # how many questions are about the scene of a caption, so that the model can read what it draws
ALIKE = 0.5  # how many of the other scenes have few shapes and colours, so that there is something to count

LOW, MIDDLE, HIGH = (0, 22), (28, 36), (42, 64)  # where a centre is clearly near, in the middle, far; in pixels
CLEAR_OFFSET = 12  # pixels between two centres along an axis that make a clear direction


@dataclass(frozen=True)
class Question:
    """A question about a scene, its only right answer (lower case), and its kind, a key of KINDS."""

    scene: Scene
    question: str
    answer: str
    kind: str


Asked = tuple[str, str] | None
"""A question and its answer; None where the scene does not allow one of the kind."""


def question(rng: random.Random, split: Split | None) -> Question:
    """A question about a scene of the split: one that a caption asks for, or a free one."""
    return question_about(rng, question_scene(rng, split))


def other_answer(rng: random.Random, split: Split | None, asked: Question) -> str:
    """An answer to another question of the same kind, and so most often a wrong one."""
    while True:
        other = question(rng, split)
        if other.kind == asked.kind:
            return other.answer


def question_scene(rng: random.Random, split: Split | None) -> Scene:
    if rng.random() < DRAWN:
        return drawing(rng, split).scene
    while True:
        if rng.random() < ALIKE:
            shapes, colors = rng.sample(SHAPES, 2), rng.sample(tuple(COLORS), 2)
            scene = free_scene(rng, counts=(2, 3, 4), shapes=shapes, colors=colors)
        else:
            scene = free_scene(rng)
        if wanted(scene_split(scene), split):
            return scene


def question_about(rng: random.Random, scene: Scene, kind: str | None = None) -> Question:
    """A question about the scene, of a given kind (a key of KINDS) or of any that the scene allows. Raises ValueError
    where the scene allows none of the given kind."""
    kinds = rng.sample(tuple(KINDS), len(KINDS)) if kind is None else [kind]
    for name in kinds:
        if asked := KINDS[name](rng, scene):
            return Question(scene, *asked, name)
    raise ValueError(f"no {kind!r} question can be asked about {scene}.")


# What, which colour, where -------------------------------------------------------------------------------------------


def _what(rng: random.Random, scene: Scene) -> Asked:
    if len(scene.things) == 1:
        templates = ("what shape is this?", "which shape is in the picture?", "what is in this picture?")
        return rng.choice(templates), scene.things[0].shape
    thing = _only(rng, scene, "color")
    if thing is None:
        return None
    templates = ("what shape is the {} thing?", "which shape is {}?", "what is the {} thing?")
    return rng.choice(templates).format(thing.color), thing.shape


def _color(rng: random.Random, scene: Scene) -> Asked:
    if rng.random() < 0.15:
        return rng.choice(("what color is the background?", "which color is the background?")), scene.background
    if len(scene.things) == 1 and rng.random() < 0.3:
        return rng.choice(("what color is this?", "which color is this shape?")), scene.things[0].color
    thing = _only(rng, scene, "shape")
    if thing is None:
        return None
    templates = ("what color is the {}?", "which color is the {}?", "what is the color of the {}?")
    return rng.choice(templates).format(thing.shape), thing.color


def _where(rng: random.Random, scene: Scene) -> Asked:
    attribute = rng.choice(("shape", "color"))
    things = [thing for thing in _all_only(scene, attribute) if place_of(thing)]
    if not things:
        return None
    thing = rng.choice(things)
    name = thing.shape if attribute == "shape" else f"{thing.color} thing"
    templates = ("where is the {}?", "in which part of the picture is the {}?", "where in the picture is the {}?")
    return rng.choice(templates).format(name), place_of(thing)


def place_of(thing: Thing) -> str | None:
    """ "top left", "top", "center", …: in which part of the picture a thing is; None where that is not clear."""
    column, row = (
        next((name for name, (low, high) in zip(names, (LOW, MIDDLE, HIGH), strict=True) if low <= at <= high), None)
        for at, names in ((thing.x, ("left", "", "right")), (thing.y, ("top", "", "bottom")))
    )
    if column is None or row is None:
        return None
    return " ".join(filter(None, (row, column))) or "center"


# How many ------------------------------------------------------------------------------------------------------------


def _how_many(rng: random.Random, scene: Scene) -> Asked:
    if rng.random() < 0.25:
        nouns = rng.choice(("shapes", "things"))
        return rng.choice(_COUNT_TEMPLATES).format(nouns), NUMBER_WORDS[len(scene.things)]
    names = [(plural(shape), "shape", shape) for shape in SHAPES]
    names += [(f"{color} things", "color", color) for color in COLORS]
    counts = {name: sum(getattr(thing, key) == value for thing in scene.things) for name, key, value in names}
    count = rng.choice(sorted(set(counts.values())))  # or nearly all answers would be "zero"
    name = rng.choice([name for name in counts if counts[name] == count])
    return rng.choice(_COUNT_TEMPLATES).format(name), NUMBER_WORDS[count]


_COUNT_TEMPLATES = ("how many {} are there?", "how many {} are in the picture?", "count the {}.")


# Yes or no -----------------------------------------------------------------------------------------------------------


def _yes_no(rng: random.Random, scene: Scene) -> Asked:
    asks = rng.sample((_is_there, _is_there_colored, _has_color, _are_there, _is_placed), 5)
    answer = rng.random() < 0.5
    text = next(filter(None, (ask(rng, scene, answer) for ask in asks)))
    return text, "yes" if answer else "no"


def _is_there(rng: random.Random, scene: Scene, answer: bool) -> str:
    there = {thing.shape for thing in scene.things}
    shape = rng.choice([shape for shape in SHAPES if (shape in there) == answer])
    return rng.choice(_THERE_TEMPLATES).format(noun(shape))


def _is_there_colored(rng: random.Random, scene: Scene, answer: bool) -> str:
    there = {(thing.shape, thing.color) for thing in scene.things}
    pairs = sorted(there) if answer else [pair for pair in _pairs_like(scene) if pair not in there]
    if not answer and rng.random() < 0.7:  # the shape or the colour is there
        shapes, colors = zip(*there, strict=True)
        pairs = [pair for pair in pairs if pair[0] in shapes or pair[1] in colors]
    shape, color = rng.choice(pairs)
    return rng.choice(_THERE_TEMPLATES).format(noun(color, shape))


_THERE_TEMPLATES = ("is there {}?", "is there {} in the picture?", "does the picture show {}?")


def _has_color(rng: random.Random, scene: Scene, answer: bool) -> str | None:
    thing = _only(rng, scene, "shape")
    if thing is None:
        return None
    others = [color for shape, color in _pairs_like(scene) if shape == thing.shape and color != thing.color]
    return f"is the {thing.shape} {thing.color if answer else rng.choice(others)}?"


def _are_there(rng: random.Random, scene: Scene, answer: bool) -> str:
    count = len(scene.things)
    name = rng.choice(("shapes", "things"))
    shape = rng.choice(scene.things).shape
    if rng.random() < 0.5:
        count, name = sum(thing.shape == shape for thing in scene.things), shape
    if not answer:
        count = rng.choice([other for other in range(1, 5) if other != count])
    if name == shape:
        name = shape if count == 1 else plural(shape)
    elif count == 1:
        name = name.removesuffix("s")
    verb = "is" if count == 1 else "are"
    return f"{verb} there exactly {NUMBER_WORDS[count]} {name}?"


def _is_placed(rng: random.Random, scene: Scene, answer: bool) -> str | None:
    things = _all_only(scene, "shape")
    clear = [(a, relation, b) for a in things for b in things for relation in directions(a, b)]
    if not clear:
        return None
    a, relation, b = rng.choice(clear)
    words = rng.choice(RELATION_WORDS[relation if answer else OPPOSITES[relation]])
    return f"is the {a.shape} {words} the {b.shape}?"


def directions(a: Thing, b: Thing) -> list[str]:
    """The relations in which `a` clearly is to `b`: up to two of GenEval's four."""
    found = []
    if abs(a.x - b.x) >= CLEAR_OFFSET:
        found.append("left of" if a.x < b.x else "right of")
    if abs(a.y - b.y) >= CLEAR_OFFSET:
        found.append("above" if a.y < b.y else "below")
    return found


def described(scene: Scene) -> tuple[str, str]:
    """A request to describe the picture and its answer, from left to right: "small red ring top left, large blue cross
    center, on white". What no question of one answer gives a model in training: a word about every thing."""
    things = sorted(scene.things, key=lambda thing: (thing.x, thing.y))
    parts = [f"{thing.size} {thing.color} {thing.shape} {_third(thing)}" for thing in things]
    return "describe the picture.", ", ".join([*parts, f"on {scene.background}"])


def _third(thing: Thing) -> str:
    column, row = (
        names[min(at * 3 // SIDE, 2)]
        for at, names in ((thing.x, ("left", "", "right")), (thing.y, ("top", "", "bottom")))
    )
    return " ".join(filter(None, (row, column))) or "center"


def _all_only(scene: Scene, attribute: str) -> list[Thing]:
    """The things that are the only ones of their shape or colour."""
    values = [getattr(thing, attribute) for thing in scene.things]
    return [thing for thing, value in zip(scene.things, values, strict=True) if values.count(value) == 1]


def _only(rng: random.Random, scene: Scene, attribute: str) -> Thing | None:
    things = _all_only(scene, attribute)
    return rng.choice(things) if things else None


def _pairs_like(scene: Scene) -> list[tuple[str, str]]:
    """The (shape, colour) that a question may name: about a scene for training, none that is held out."""
    train = scene_split(scene) == "train"
    return [(shape, color) for shape in SHAPES for color in COLORS if not train or color_split(shape, color) == "train"]


KINDS: dict[str, Callable[[random.Random, Scene], Asked]] = {
    "what": _what,
    "color": _color,
    "how_many": _how_many,
    "where": _where,
    "yes_no": _yes_no,
}
"""Each kind's maker of questions."""
