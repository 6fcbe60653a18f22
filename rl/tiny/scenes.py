"""`rl.tiny.scenes:Scenes`: is the picture the scene that an edit asks for, and nothing else changed?"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rewards.contract.base import Reward, RewardBatch
from rl.tiny.detector import Sighting, detect, seen_background
from rl.tiny.shapes import listed
from rl.tiny.world import BACKGROUNDS, COLORS, SHAPES, SIDE, USUAL_SIZE, Scene, Thing
from uniar.errors import UserError

TOLERANCE = 6.0
"""pixels; how far a centre may be off along each axis"""


class Scenes(Reward):
    """What an image of UniAR-Tiny's world has of the scene that the sample's metadata lists under `scene`, as the edits
    of `uniar-rl prompts` have it: each thing in its shape, colour and place, nothing else, and the background. A sample
    without `scene` has no score.

    Args:
        credit: "strict" is 1 where nothing is wrong, else 0; "partial" is the share of the things and the background
            that are right, each thing too many counting as one more that is not.

    Raises UserError for metadata that is not a scene.
    """

    usual_range = (0.0, 1.0)

    def __init__(self, credit: Literal["strict", "partial"] = "strict"):
        self.credit = credit

    def check_sample(self, prompt: str, metadata: Mapping[str, Any]) -> None:
        if "scene" in metadata:
            read_scene(metadata["scene"])

    def score(self, batch: RewardBatch) -> list[dict[str, Any] | UserError | None]:
        """Mappings with `score`, `why` and what was `found`; None where no scene is asked for, an error for one that is
        not valid."""
        results: list[dict[str, Any] | UserError | None] = []
        for image, metadata in zip(batch.images, batch.metadata, strict=True):
            if "scene" not in metadata:
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
    """The scene of `written_scene`, its things of the usual size. Raises UserError for what is none."""
    if not isinstance(written, Mapping) or not isinstance(written.get("things"), list):
        raise UserError(f"scene is {written!r}; a mapping with background and a list of things is needed.")
    if written.get("background") not in tuple(BACKGROUNDS):
        raise UserError(f"scene has background {written.get('background')!r}; known: {', '.join(BACKGROUNDS)}.")
    for thing in written["things"]:
        if not _is_thing(thing):
            raise UserError(
                f"scene has the thing {thing!r}; shape ({', '.join(SHAPES)}), color ({', '.join(COLORS)}) and x and y "
                f"from 0 to {SIDE} are needed."
            )
    things = [Thing(each["shape"], each["color"], USUAL_SIZE, each["x"], each["y"]) for each in written["things"]]
    return Scene(tuple(things), written["background"])


def _is_thing(thing: object) -> bool:
    if not isinstance(thing, Mapping) or thing.get("shape") not in SHAPES or thing.get("color") not in tuple(COLORS):
        return False
    return all(isinstance(at, int) and not isinstance(at, bool) and 0 <= at <= SIDE for at in map(thing.get, "xy"))


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
