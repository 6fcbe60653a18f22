"""Captions of UniAR-Tiny's world with the scene that each asks for, in GenEval's six skills (arXiv:2310.11513).

The model draws the bits of a visual token independently of each other, so what a caption leaves open must not have
several likely answers. The scene of a drawing follows these conventions:

- A colour that is not named is the shape's usual one (`USUAL_COLORS`), a size medium, a background white.
- Places that are not named follow the number of things, in the order of mention: one in the centre; two left and right
  at mid height; three top left, top right and bottom centre; four as two rows of two.
- For a position, the two things are left and right at mid height or above each other at mid width.
- Each thing is up to JITTER pixels off its place along each axis.
"""

import random
from dataclasses import dataclass, field
from typing import Any

from rewards.geneval.request import RELATIONS, SKILLS
from rl.tiny.splits import SPLITS, Split, color_attr_split, color_split, pair_split, position_split, text_split, wanted
from rl.tiny.world import BACKGROUNDS, COLORS, SHAPES, USUAL_BACKGROUND, USUAL_COLORS, USUAL_SIZE, Scene, Thing

Place = tuple[int, int]

NEAR, MIDDLE, FAR = 16, 32, 48
LAYOUTS: dict[int, tuple[Place, ...]] = {
    1: ((MIDDLE, MIDDLE),),
    2: ((NEAR, MIDDLE), (FAR, MIDDLE)),
    3: ((NEAR, NEAR), (FAR, NEAR), (MIDDLE, FAR)),
    4: ((NEAR, NEAR), (FAR, NEAR), (NEAR, FAR), (FAR, FAR)),
}
RELATION_LAYOUTS: dict[str, tuple[Place, Place]] = {
    "left of": ((NEAR, MIDDLE), (FAR, MIDDLE)),
    "right of": ((FAR, MIDDLE), (NEAR, MIDDLE)),
    "above": ((MIDDLE, NEAR), (MIDDLE, FAR)),
    "below": ((MIDDLE, FAR), (MIDDLE, NEAR)),
}
JITTER = 1

PLACES: dict[Place, tuple[str, ...]] = {
    (NEAR, NEAR): ("in the top left", "in the upper left corner"),
    (MIDDLE, NEAR): ("at the top", "at the very top"),
    (FAR, NEAR): ("in the top right", "in the upper right corner"),
    (NEAR, MIDDLE): ("on the left", "at the left side"),
    (MIDDLE, MIDDLE): ("in the center", "in the middle"),
    (FAR, MIDDLE): ("on the right", "at the right side"),
    (NEAR, FAR): ("in the bottom left", "in the lower left corner"),
    (MIDDLE, FAR): ("at the bottom", "at the very bottom"),
    (FAR, FAR): ("in the bottom right", "in the lower right corner"),
}
OPENINGS = (
    "{}",
    "a picture of {}",
    "an image of {}",
    "a photo of {}",
    "a drawing of {}",
    "a picture with {}",
    "draw {}",
    "please draw {}",
    "paint {}",
    "show me {}",
    "create an image with {}",
)
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
NUMBERS = {2: ("two", "2"), 3: ("three", "3"), 4: ("four", "4")}
BACKGROUND_WORDS = ("on a {} background", "against a {} background", "in front of a {} background")
RELATION_WORDS = {
    "left of": ("to the left of", "left of", "on the left side of"),
    "right of": ("to the right of", "right of", "on the right side of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "beneath"),
}

SIZE_NAMED, PLACE_NAMED, BACKGROUND_NAMED, COLOR_COUNTED = 0.25, 0.3, 0.25, 0.5  # how often


@dataclass(frozen=True)
class Drawing:
    """A caption, GenEval's metadata of it (`tag`, `include`, `exclude`), and the scene it asks for."""

    prompt: str
    metadata: dict[str, Any]
    scene: Scene


@dataclass
class _Sketch:
    """A caption in the making: what it says, the clauses, the looks (shape, colour, size) in the order of mention."""

    words: str
    looks: list[tuple[str, str, str]]
    include: list[dict[str, Any]]
    exclude: list[dict[str, Any]] = field(default_factory=list)
    places: tuple[Place, ...] | None = None


def drawing(rng: random.Random, split: Split | None, skill: str | None = None) -> Drawing:
    """A caption of the split and of a skill from SKILLS, any where it is None."""
    skill = rng.choice(SKILLS) if skill is None else skill
    make = _MAKERS[skill]
    while True:
        sketch = make(rng, split)
        background = USUAL_BACKGROUND
        if rng.random() < BACKGROUND_NAMED:
            background = rng.choice(tuple(BACKGROUNDS))
            sketch.words += " " + rng.choice(BACKGROUND_WORDS).format(background)
        prompt = rng.choice(OPENINGS).format(sketch.words)
        if skill not in _TEXT_SPLIT or wanted(text_split(prompt), split):
            break
    places = sketch.places or LAYOUTS[len(sketch.looks)]
    things = tuple(jittered(rng, *look, place) for look, place in zip(sketch.looks, places, strict=True))
    metadata = {"tag": skill, "include": sketch.include, "exclude": sketch.exclude}
    return Drawing(prompt, metadata, Scene(things, background))


def jittered(rng: random.Random, shape: str, color: str, size: str, place: Place) -> Thing:
    """A thing at a place, give or take JITTER."""
    x, y = (at + rng.randint(-JITTER, JITTER) for at in place)
    return Thing(shape, color, size, x, y)


def named_size(rng: random.Random) -> tuple[str, str]:
    """A size and the word for it, "" for the usual one."""
    if rng.random() >= SIZE_NAMED:
        return USUAL_SIZE, ""
    size = rng.choice(tuple(SIZE_WORDS))
    return size, rng.choice(SIZE_WORDS[size])


def noun(*words: str) -> str:
    """ "an orange circle" of "", "orange", "circle"."""
    phrase = " ".join(filter(None, words))
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def plural(shape: str) -> str:
    """ "crosses" of "cross"."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


# Skills --------------------------------------------------------------------------------------------------------------


def _single_object(rng: random.Random, split: Split | None) -> _Sketch:
    shape = rng.choice(SHAPES)
    size, size_word = named_size(rng)
    words, places = _placed(rng, noun(size_word, shape))
    return _Sketch(words, [(shape, USUAL_COLORS[shape], size)], [{"class": shape, "count": 1}], places=places)


def _colors(rng: random.Random, split: Split | None) -> _Sketch:
    shape, color = rng.choice(_SHAPE_COLORS[split])
    size, size_word = named_size(rng)
    words, places = _placed(rng, _colored(rng, size_word, color, shape))
    return _Sketch(words, [(shape, color, size)], [{"class": shape, "count": 1, "color": color}], places=places)


def _counting(rng: random.Random, split: Split | None) -> _Sketch:
    count = rng.choice(tuple(NUMBERS))
    size, size_word = named_size(rng)
    shape, color = rng.choice(SHAPES), None
    if rng.random() < COLOR_COUNTED:
        shape, color = rng.choice(_SHAPE_COLORS[_of_parts(split)])
    parts = (rng.choice(("", "exactly")), rng.choice(NUMBERS[count]), size_word, color, plural(shape))
    words = " ".join(filter(None, parts))
    include = {"class": shape, "count": count} | ({"color": color} if color else {})
    look = (shape, color or USUAL_COLORS[shape], size)
    return _Sketch(words, [look] * count, [include], [{"class": shape, "count": count + 1}])


def _two_object(rng: random.Random, split: Split | None) -> _Sketch:
    while not wanted(pair_split(*(shapes := rng.sample(SHAPES, 2))), split):
        pass
    looks, phrases = [], []
    for shape in shapes:
        size, size_word = named_size(rng)
        looks.append((shape, USUAL_COLORS[shape], size))
        phrases.append(noun(size_word, shape))
    return _Sketch(_together(rng, *phrases), looks, [{"class": shape, "count": 1} for shape in shapes])


def _color_attr(rng: random.Random, split: Split | None) -> _Sketch:
    while True:
        pairs = [rng.choice(_SHAPE_COLORS[_of_parts(split)]) for _ in range(2)]
        if pairs[0][0] != pairs[1][0] and wanted(color_attr_split(*pairs), split):
            break
    looks, phrases = [], []
    for shape, color in pairs:
        size, size_word = named_size(rng)
        looks.append((shape, color, size))
        phrases.append(_colored(rng, size_word, color, shape))
    include = [{"class": shape, "count": 1, "color": color} for shape, color in pairs]
    return _Sketch(_together(rng, *phrases), looks, include)


def _position(rng: random.Random, split: Split | None) -> _Sketch:
    while True:
        relation = rng.choice(RELATIONS)
        a, b = rng.sample(SHAPES, 2)
        if wanted(position_split(a, relation, b), split):
            break
    looks, phrases = [], []
    for shape in (a, b):
        size, size_word = named_size(rng)
        looks.append((shape, USUAL_COLORS[shape], size))
        phrases.append(noun(size_word, shape))
    words = rng.choice(RELATION_WORDS[relation])
    if rng.random() < 0.7 or words == "higher than":
        sentence = f"{phrases[0]} {words} {phrases[1]}"
    else:
        sentence = f"{phrases[1]} with {phrases[0]} {words} it"
    include = [{"class": b, "count": 1}, {"class": a, "count": 1, "position": [relation, 0]}]
    return _Sketch(sentence, looks, include, places=RELATION_LAYOUTS[relation])


def _of_parts(split: Split | None) -> Split | None:
    """The split of a combination's parts: those of training, also in what is held out."""
    return None if split is None else "train"


def _placed(rng: random.Random, phrase: str) -> tuple[str, tuple[Place, ...] | None]:
    """A phrase that may name a place, and that place."""
    if rng.random() >= PLACE_NAMED:
        return phrase, None
    place = rng.choice(tuple(PLACES))
    return f"{phrase} {rng.choice(PLACES[place])}", (place,)


def _colored(rng: random.Random, size_word: str, color: str, shape: str) -> str:
    if rng.random() < 0.8:
        return noun(size_word, color, shape)
    return f"{noun(size_word, shape)} {rng.choice(('in', 'that is'))} {color}"


def _together(rng: random.Random, a: str, b: str) -> str:
    return rng.choice(("{} and {}", "{} and {}", "{} with {}", "{} next to {}", "{} beside {}")).format(a, b)


_MAKERS = {
    "single_object": _single_object,
    "two_object": _two_object,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": _color_attr,
}
_TEXT_SPLIT = ("single_object", "counting")
_SHAPE_COLORS = {
    split: [(shape, color) for shape in SHAPES for color in COLORS if wanted(color_split(shape, color), split)]
    for split in (*SPLITS, None)
}
