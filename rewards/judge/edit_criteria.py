"""What a judge looks at in an edit, by the kind of edit, as ImgEdit-Bench does (Ye et al. 2025, arXiv 2505.20275).

The kinds, the names of the ratings, the scale and the rule that no rating may be above the first are ImgEdit's; the
wording is this project's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uniar.errors import UserError, did_you_mean

KEY = "edit_type"
"""the key of the metadata that names the kind"""


@dataclass(frozen=True)
class EditCriteria:
    """How an edit of one kind is rated, each rating from 1 to 5."""

    wish: str
    """what an edit of this kind is to do"""
    ratings: Mapping[str, str]
    """name → what the judge is to look at; the first is whether the instruction was followed"""

    @property
    def question(self) -> str:
        """A template with {prompt} for the instruction; its answer ends with a line of each rating."""
        looked_at = "\n".join(f"- {name}: {what}" for name, what in self.ratings.items())
        lines = "\n".join(f"{name}: N" for name in self.ratings)
        return _QUESTION.format(wish=self.wish, looked_at=looked_at, first=next(iter(self.ratings)), lines=lines)


_QUESTION = """\
The first picture is an original, the last is what became of it when somebody was asked to edit it:

{{prompt}}

{wish} Rate the edit on three axes, each with a whole number from 1 (worst) to 5 (best):

{looked_at}

A picture that shows nothing of what was asked for has 1 in {first}, however good it looks. None of the other two may be
above {first}: lower one that is. Say in one sentence what decides, then end with these lines, a number in place of N:

{lines}"""

EDIT_CRITERIA: Mapping[str, EditCriteria] = {
    "add": EditCriteria(
        "Something new was to appear in the picture.",
        {
            "Prompt Compliance": "is the new thing what was asked for? 5: its kind, number, place and looks are as "
            "named. 3: the kind is right, but where it is, how many there are or how it looks is not. 1: there is "
            "nothing new, or nothing that one could recognise.",
            "Visual Naturalness": "does it look as if it had always been there? 5: its style, sharpness and colours "
            "are those of the picture. 3: it fits by and large, but its light or colours stick out. 1: it is glued on, "
            "or the picture is damaged.",
            "Physical & Detail Coherence": "could it be where it is, and is the rest of the scene as before? 5: size, "
            "perspective, contact with the ground, what hides what and shadows are right, and nothing behind it "
            "changed. 3: small mistakes in these, a little of the scene redrawn. 1: it floats or has an impossible "
            "size, or it has destroyed what was there.",
        },
    ),
    "adjust": EditCriteria(
        "A property of something in the picture (colour, material, texture, age) was to change, and its shape to stay.",
        {
            "Prompt Compliance": "has the named thing the property that was asked for, and nothing else? 5: yes, with "
            "its outline as before. 3: the right thing has roughly the right property, or others have a bit of it too. "
            "1: it is as it was, another thing changed, or its shape is another.",
            "Visual Seamlessness": "where the change ends, does it end cleanly? 5: no trace of an edit. 3: tones or "
            "grain differ from those around, edges are soft. 1: colour runs over whatever is near, or noise covers it.",
            "Physical & Detail Fidelity": "does light behave on it as it would? 5: shading, highlights and reflections "
            "suit the new surface, and fine details are all there. 3: mostly, with some lost. 1: flat paint, or the "
            "things around are bent.",
        },
    ),
    "extract": EditCriteria(
        "Something was to be cut out of the original and stand alone before plain white.",
        {
            "Object Identity": "is it the very thing that was named, all of it? 5: whole, and the same one as in the "
            "original. 3: the same, but parts are missing or something was cut out with it. 1: another thing, or the "
            "scene as it was.",
            "Mask Precision": "is the outline clean, and is there only white around it? 5: a sharp outline on pure "
            "white. 3: soft edges or a faint rim. 1: much of the old surroundings is left, or the ground is not white.",
            "Visual Quality": "is the thing itself as sharp as in the original, and of the same colours? 5: in every "
            "detail. 3: somewhat blurred or tinted. 1: warped, smeared or in pieces.",
        },
    ),
    "replace": EditCriteria(
        "One thing in the picture was to give its place to another.",
        {
            "Prompt Compliance": "is the old one gone and the new one there as described? 5: yes, with the number, "
            "place, size and looks that were named, and nothing else was exchanged. 3: mostly, but something of the "
            "old one is left, or other things changed. 1: the old one is still there, or something unrelated changed.",
            "Visual Naturalness": "does the new one belong to the picture? 5: one would not look for an edit. 3: its "
            "style is near, its light, colours or edges are not. 1: it is deformed, or the place around it is ruined.",
            "Physical & Detail Integrity": "is it where and how it could really be, in a scene that stayed as it was? "
            "5: perspective, light, shadows, reflections and contact all agree. 3: some do not quite, or the scene "
            "changed near it. 1: it hangs in the air, is much too large or small, or the scene is twisted.",
        },
    ),
    "remove": EditCriteria(
        "Something was to go from the picture, and what is behind it to be filled in.",
        {
            "Prompt Compliance": "is all of it gone, and only it? 5: yes. 3: most of it, or other things went with it. "
            "1: it is still there, or something else is gone.",
            "Visual Naturalness": "can one see that something was there? 5: no. 3: a blurred or differently lit place "
            "shows it. 1: a hole, or smears across the picture.",
            "Physical & Detail Integrity": "is what was filled in what one would expect there? 5: lines, textures and "
            "light go on through it, its shadow and reflection are gone too, and all else is as before. 3: plausible, "
            "with shifts nearby. 1: nonsense was filled in, or important things of the scene are damaged.",
        },
    ),
    "background": EditCriteria(
        "What is behind the subject was to become something else, and the subject to stay as it is.",
        {
            "Instruction Compliance": "is the new background the one that was described, all around an unchanged "
            "subject? 5: yes. 3: by and large, with things missing, or the subject's edges have some of it. 1: the old "
            "background, an unrelated one, or a subject that was redrawn.",
            "Visual Seamlessness": "do subject and background meet without a seam? 5: as in a single photograph. 3: "
            "edges, grain or colours differ when one looks closely. 1: torn or haloed outlines at first sight.",
            "Physical Consistency": "could the subject stand in that place? 5: the light comes from one side for both, "
            "and horizon, scale and shadows agree. 3: believable, with small errors in these. 1: it floats, or the two "
            "contradict each other.",
        },
    ),
    "style": EditCriteria(
        "The whole picture was to be shown in another style, with the same content.",
        {
            "Style Fidelity": "is it the style that was named? 5: strokes, palette, texture and light of it "
            "everywhere. 3: recognisable, but in places only, or unevenly. 1: none of it, or another style.",
            "Content Preservation": "are all things still there and in their places? 5: yes, with what the style "
            "itself bends. 3: the layout is, some things are bent or missing. 1: it is hardly the same scene.",
            "Rendering Quality": "is it well made? 5: clear, coherent strokes and clean transitions. 3: blurred or "
            "broken in places. 1: noise, banding or smears make it useless.",
        },
    ),
    "compose": EditCriteria(
        "Several changes were asked for at once.",
        {
            "Instruction Compliance": "was each of them made, to the right thing? 5: all, as described, and nothing "
            "else. 3: each shows, but some are not complete or not quite as described. 2: one of them is missing. 1: "
            "none is right.",
            "Visual Naturalness": "do the changed places blend with the rest? 5: one cannot find them. 3: their edges, "
            "sharpness or colours give them away when one looks closely. 1: they are obvious at first sight.",
            "Physical Consistency & Fine Detail": "do light, shadows, perspective and textures of all of it agree? 5: "
            "yes, down to details. 3: plausible, with small errors. 1: things float, bend, or are lit from nowhere.",
        },
    ),
    "action": EditCriteria(
        "Somebody in the picture was to move, or to look otherwise: another pose, gesture or expression.",
        {
            "Action Fidelity": "is it the pose or expression that was asked for? 5: exactly, with the right side, "
            "direction and strength. 3: the idea is there, an angle, a side or a part of the gesture is not. 1: the "
            "same as before, or another one.",
            "Identity Preservation": "is it the same person or animal? 5: face, hair, skin or fur, clothes and all "
            "they wear are as before. 3: one knows them, though some features changed. 1: somebody else.",
            "Visual & Anatomical Coherence": "is the body one that could be, cleanly drawn? 5: limbs, joints, folds, "
            "light and edges are right. 3: plausible, with a joint or shadow that is off. 1: limbs are broken, doubled "
            "or missing.",
        },
    ),
}

_ALSO_CALLED = {"alter": "adjust", "hybrid": "compose"}  # in ImgEdit's first prompt file, and in its paper


def kind_named(said: Any) -> str:
    """The kind that an entry of the metadata means, by the name it has here; an unknown one in small letters, "" for
    anything but text."""
    name = said.strip().lower() if isinstance(said, str) else ""
    return _ALSO_CALLED.get(name, name)


def criteria_of(metadata: Mapping[str, Any]) -> EditCriteria | None:
    """Those of a sample's kind of edit; None where its metadata names none. Raises UserError for an unknown kind."""
    kind = metadata.get(KEY)
    if kind is None or kind != kind:  # a NaN says nothing either
        return None
    found = EDIT_CRITERIA.get(name := kind_named(kind))
    if found is None:
        hint = did_you_mean(name, [*EDIT_CRITERIA, *_ALSO_CALLED])
        raise UserError(f"metadata {KEY!r} is {kind!r}; one of {', '.join(EDIT_CRITERIA)} is needed.{hint}")
    return found


def capped(ratings: Mapping[str, float]) -> list[float]:
    """What each rating counts: no more than the first one, which says whether the instruction was followed."""
    first = next(iter(ratings.values()))
    return [min(rating, first) for rating in ratings.values()]
