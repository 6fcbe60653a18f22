"""The world of UniAR-Tiny: 64 × 64 pictures of one to four plain shapes on a plain background.

A `Scene` is the truth about a picture and `render` its only picture, so captions, answers, edits and scores can all be
checked against it. Things have whole pixels as centres and even extents: a shape's outline is the same wherever it is.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw

SIDE = 64
"""Width and height of a picture in pixels."""

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")

COLORS = {
    "red": (220, 30, 30),
    "orange": (255, 140, 0),
    "yellow": (250, 225, 20),
    "green": (30, 160, 50),
    "cyan": (0, 205, 225),
    "blue": (40, 60, 215),
    "purple": (135, 35, 175),
    "pink": (255, 110, 185),
}
"""RGB of each colour, 0 to 255."""

BACKGROUNDS = {"white": (250, 250, 250), "grey": (200, 200, 200), "black": (22, 22, 22)}
"""RGB of each background: neutral, where every colour is saturated; as few colours as can be are as bright as one."""

SIZES = {"small": 12, "medium": 16, "large": 20}
"""Width and height of a thing in pixels."""

USUAL_COLORS = {
    "circle": "red",
    "square": "blue",
    "triangle": "green",
    "diamond": "purple",
    "cross": "orange",
    "ring": "cyan",
}
"""The colour of a shape in a drawing whose caption names none."""

USUAL_SIZE, USUAL_BACKGROUND = "medium", "white"

MARGIN = 2  # pixels between a thing and the picture's edge
GAP = 4  # pixels between the boxes of two things along at least one axis
SUPERSAMPLING = 8


@dataclass(frozen=True)
class Thing:
    """A shape in a picture: names from SHAPES, COLORS and SIZES, and its centre (x to the right, y down) in pixels."""

    shape: str
    color: str
    size: str
    x: int
    y: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) in pixels, right and bottom exclusive."""
        half = SIZES[self.size] // 2
        return self.x - half, self.y - half, self.x + half, self.y + half


@dataclass(frozen=True)
class Scene:
    """A picture's content: things that do not touch, in front of a background from BACKGROUNDS."""

    things: tuple[Thing, ...]
    background: str = USUAL_BACKGROUND


def render(scene: Scene) -> Image.Image:
    """The picture of a scene: SIDE × SIDE, RGB, antialiased. The same scene gives the same pixels."""
    image = Image.new("RGB", (SIDE, SIDE), BACKGROUNDS[scene.background])
    for thing in scene.things:
        image.paste(COLORS[thing.color], thing.box, _mask(thing.shape, SIZES[thing.size]))
    return image


def apart(a: Thing, b: Thing, gap: int = GAP) -> bool:
    """Whether the boxes of two things are at least `gap` pixels from each other along an axis."""
    distance = max(abs(a.x - b.x), abs(a.y - b.y))
    return distance >= (SIZES[a.size] + SIZES[b.size]) // 2 + gap


def is_inside(thing: Thing) -> bool:
    """Whether a thing is whole and MARGIN pixels or more from the picture's edge."""
    left, top, right, bottom = thing.box
    return min(left, top) >= MARGIN and max(right, bottom) <= SIDE - MARGIN


def free_scene(
    rng: random.Random,
    counts: Sequence[int] = (1, 2, 3, 4),
    shapes: Sequence[str] = SHAPES,
    colors: Sequence[str] = tuple(COLORS),
    sizes: Sequence[str] = tuple(SIZES),
    backgrounds: Sequence[str] = tuple(BACKGROUNDS),
) -> Scene:
    """A scene without any convention: a number of things from `counts`, each with a shape, colour and size drawn on its
    own, anywhere in the picture as long as they are apart. Which comes first in `things` means nothing."""
    looks = [(rng.choice(shapes), rng.choice(colors), rng.choice(sizes)) for _ in range(rng.choice(counts))]
    return Scene(placed(rng, looks), rng.choice(backgrounds))


def placed(rng: random.Random, looks: Sequence[tuple[str, str, str]]) -> tuple[Thing, ...]:
    """Things with the given shapes, colours and sizes, anywhere inside the picture as long as they are apart."""
    largest_first = sorted(range(len(looks)), key=lambda index: -SIZES[looks[index][2]])
    while True:  # crowded tries are thrown away whole, so that late things are not pushed into corners
        things: dict[int, Thing] = {}
        for index in largest_first:
            thing = somewhere(rng, *looks[index])
            if not all(apart(thing, other) for other in things.values()):
                break
            things[index] = thing
        else:
            return tuple(things[index] for index in range(len(looks)))


def somewhere(rng: random.Random, shape: str, color: str, size: str) -> Thing:
    """A thing anywhere inside the picture."""
    edge = MARGIN + SIZES[size] // 2
    return Thing(shape, color, size, rng.randint(edge, SIDE - edge), rng.randint(edge, SIDE - edge))


@cache
def _mask(shape: str, extent: int) -> Image.Image:
    """(extent, extent) of mode L: how much of each pixel the shape covers."""
    return outline(shape, extent).reduce(SUPERSAMPLING)


def outline(shape: str, extent: int) -> Image.Image:
    """The shape in a box of `extent` pixels as a mask of mode L with SUPERSAMPLING² samples per pixel, 0 or 255."""
    side = extent * SUPERSAMPLING
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    last = side - 1  # PIL's boxes and polygons include their last pixel
    match shape:
        case "circle":
            draw.ellipse((0, 0, last, last), fill=255)
        case "square":  # a little smaller than its box, or it would look larger than the others
            inset = SUPERSAMPLING
            draw.rectangle((inset, inset, last - inset, last - inset), fill=255)
        case "triangle":
            draw.polygon(((last / 2, 0), (last, last), (0, last)), fill=255)
        case "diamond":
            draw.polygon(((last / 2, 0), (last, last / 2), (last / 2, last), (0, last / 2)), fill=255)
        case "cross":
            arm = 2 * round(extent / 6) * SUPERSAMPLING
            near, far = (side - arm) // 2, (side + arm) // 2 - 1
            draw.rectangle((near, 0, far, last), fill=255)
            draw.rectangle((0, near, last, far), fill=255)
        case "ring":
            width = extent * SUPERSAMPLING / 4
            draw.ellipse((0, 0, last, last), fill=255)
            draw.ellipse((width, width, last - width, last - width), fill=0)
        case _:
            raise ValueError(f"{shape!r} is not a shape of this world: {', '.join(SHAPES)}.")
    return mask
