"""`rl.tiny.scenes:Scenes`: is the picture the scene that an edit asks for, and nothing else changed?"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

from rewards.contract.base import Reward, RewardBatch
from rl.tiny.detector import Sighting, detect, seen_background
from rl.tiny.shapes import listed
from rl.tiny.world import BACKGROUNDS, COLORS, SHAPES, SIDE, SIZES, Scene, Thing, apart, is_inside
from uniar.errors import UserError

TOLERANCE = 6.0
"""pixels; how far a centre may be off along each axis"""


class Scenes(Reward):
    """What an image of UniAR-Tiny's world has of the scene that the sample's metadata lists under `scene`, as the edits
    of `uniar-rl prompts` have it: each thing in its shape, colour and place, nothing else, and the background. Sizes do
    not count. A sample without `scene` has no score.

    Args:
        credit: "strict" is 1 where nothing is wrong, else 0; "partial" is the share of the things and the background
            that are right, each thing too many counting as one more that is not.

    Raises UserError for metadata that is not a scene.
    """

    usual_range = (0.0, 1.0)

    def __init__(self, credit: Literal["strict", "partial"] = "strict"):
        self.credit = credit

    def check_sample(self, prompt: str, metadata: Mapping[str, Any]) -> None:
        if metadata.get("scene") is not None:
            read_scene(metadata["scene"])

    def score(self, batch: RewardBatch) -> list[dict[str, Any] | UserError | None]:
        """Mappings with `score`, `why` and what was `found`; None where no scene is asked for, an error for one that is
        not valid."""
        results: list[dict[str, Any] | UserError | None] = []
        for image, metadata in zip(batch.images, batch.metadata, strict=True):
            if metadata.get("scene") is None:
                results.append(None)
                continue
            try:
                scene = read_scene(metadata["scene"])
            except UserError as error:
                results.append(error)
                continue
            sightings = detect(image)
            faults = scene_faults(sightings, scene)
            if (background := seen_background(image)) != scene.background:
                faults.append(f"a {background} background, not a {scene.background} one")
            score = float(not faults) if self.credit == "strict" else _share_right(sightings, scene, background)
            results.append({"score": score, "why": "; ".join(faults) or "all there", "found": listed(sightings)})
        return results


def written_scene(scene: Scene) -> dict[str, Any]:
    """A scene as metadata: `background` and `things`, each with `shape`, `color`, and its centre `x`, `y` in pixels."""
    things = [{"shape": each.shape, "color": each.color, "x": each.x, "y": each.y} for each in scene.things]
    return {"background": scene.background, "things": things}


def read_scene(written: object) -> Scene:
    """The scene of `written_scene`, its things of the smallest size. Raises UserError for what is none, or cannot be
    drawn."""
    if not isinstance(written, Mapping) or {*written} != {"background", "things"}:
        raise UserError(f"scene is {written!r}; a mapping with background and things, and nothing else, is needed.")
    background, things = written["background"], written["things"]
    if background not in tuple(BACKGROUNDS):
        raise UserError(f"scene has background {background!r}; known: {', '.join(BACKGROUNDS)}.")
    if not isinstance(things, list | tuple) or not things:
        raise UserError(f"scene has things {things!r}; a list of at least one is needed.")
    scene = Scene(tuple(_read_thing(thing) for thing in things), background)
    for a, b in combinations(scene.things, 2):
        if not apart(a, b, gap=0):
            raise UserError(f"scene has a {a.shape} and a {b.shape} at {a.x}, {a.y} and {b.x}, {b.y}; they overlap.")
    return scene


def _read_thing(written: object) -> Thing:
    if isinstance(written, Mapping) and {*written} == {"shape", "color", "x", "y"}:
        shape, color, x, y = (written[key] for key in ("shape", "color", "x", "y"))
        known = shape in SHAPES and color in tuple(COLORS)
        if known and all(isinstance(at, int) and not isinstance(at, bool) for at in (x, y)):
            thing = Thing(shape, color, min(SIZES, key=lambda size: SIZES[size]), x, y)
            if is_inside(thing):
                return thing
    raise UserError(
        f"scene has the thing {written!r}; shape ({', '.join(SHAPES)}), color ({', '.join(COLORS)}), and x and y in "
        f"whole pixels of a picture of {SIDE} × {SIDE}, well inside, are needed."
    )


def scene_faults(sightings: Sequence[Sighting], scene: Scene, tolerance: float = TOLERANCE) -> list[str]:
    """What is wrong with a picture of a scene, in a few words each; empty where each thing is there, in its shape and
    colour, with its centre at most `tolerance` pixels off along each axis, and nothing else is."""
    missing, surplus = _compared(sightings, scene, tolerance)
    return [
        *(f"no {thing.color} {thing.shape} at {thing.x}, {thing.y}" for thing in missing),
        *(f"{listed([each])} too many" for each in surplus),
    ]


def _share_right(sightings: Sequence[Sighting], scene: Scene, background: str) -> float:
    missing, surplus = _compared(sightings, scene)
    right = len(scene.things) - len(missing) + (background == scene.background)
    return right / (len(scene.things) + len(surplus) + 1)


def _compared(
    sightings: Sequence[Sighting], scene: Scene, tolerance: float = TOLERANCE
) -> tuple[list[Thing], list[Sighting]]:
    """The things of the scene that were not seen, and what was seen beyond it."""
    left, missing = list(sightings), []
    for thing in scene.things:
        near = [each for each in left if max(abs(each.x - thing.x), abs(each.y - thing.y)) <= tolerance]
        same = [each for each in near if (each.shape, each.color) == (thing.shape, thing.color)]
        if same:
            left.remove(same[0])
        else:
            missing.append(thing)
    return missing, left
