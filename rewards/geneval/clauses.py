"""Whether detected objects are what a GenEval record asks for. Pure functions: no model, no image.

Ghosh et al. 2023 (arXiv:2310.11513) define the clauses and the strict credit; the partial credit is the one that
Flow-GRPO (arXiv:2505.05470) trains with.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from rewards.geneval.request import Include, Request

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """An object that was found: its `box` (left, top, right, bottom) in pixels, and its `color`, which matters only for
    those that `need_color` names."""

    box: Box
    color: str | None = None


Found = Mapping[str, Sequence[Detection]]
"""For each class its detections, the surest first. A class of which there is none may be missing."""


@dataclass(frozen=True)
class Verdict:
    """A score, and in a few words each what is wrong. Nothing is wrong exactly where the score is 1."""

    score: float
    why: tuple[str, ...]


class Scored(Protocol):
    score: float


S = TypeVar("S", bound=Scored)


def kept(detections: Sequence[S], threshold: float, limit: int) -> list[S]:
    """The detections of one class that count: those with a score above the threshold, the surest first, `limit` at
    most."""
    sure = [detection for detection in detections if detection.score > threshold]
    return sorted(sure, key=lambda detection: -detection.score)[:limit]


def relations(a: Box, b: Box, threshold: float = 0.1) -> frozenset[str]:
    """Where box `a` is, seen from box `b`: up to two of RELATIONS, none if they are too close to say.

    The offset of the centres is shortened along each axis by `threshold` times the sum of the boxes' extents along it,
    to 0 at most. Then `a` is to the left (right, above, below) of `b` where what remains along that axis is more than
    half the distance of the centres.
    """
    remaining = []
    offsets = [(a[axis] + a[axis + 2] - b[axis] - b[axis + 2]) / 2 for axis in (0, 1)]
    for axis, offset in enumerate(offsets):
        extents = abs(a[axis + 2] - a[axis]) + abs(b[axis + 2] - b[axis])
        remaining.append(math.copysign(max(abs(offset) - threshold * extents, 0), offset))
    if all(abs(value) < 1e-3 for value in remaining):
        return frozenset()
    distance = math.hypot(*offsets)
    x, y = (value / distance for value in remaining)
    sides = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return frozenset(side for side, holds in sides.items() if holds)


def need_color(request: Request, found: Mapping[str, Sequence[object]], exact: bool) -> set[tuple[str, int]]:
    """The detections (class, index) whose colours the credit looks at. `exact` as in `_check`: True for partial."""
    wanted = set()
    for clause in request.include:
        count = len(found.get(clause.name, ()))
        if clause.color is not None and (count == clause.count if exact else count >= clause.count):
            wanted |= {(clause.name, index) for index in range(clause.count)}
    return wanted


def strict_credit(request: Request, found: Found, position_threshold: float = 0.1) -> Verdict:
    """GenEval's own judgement: 1 if every clause holds, else 0.

    An `include` clause holds if at least `count` objects of its class are found and the `count` surest of them all have
    its colour, and each is in its relation to each object of its target, which itself must hold. An `exclude` clause
    holds if fewer than `count` are found.
    """
    _, faults = _check(request, found, position_threshold, exact=False)
    faults += [
        f"fewer than {clause.count} {clause.name} asked for, {len(found.get(clause.name, ()))} found"
        for clause in request.exclude
        if len(found.get(clause.name, ())) >= clause.count
    ]
    return Verdict(0.0 if faults else 1.0, tuple(faults))


def partial_credit(
    request: Request, found: Found, position_threshold: float = 0.1, floor: float | None = None
) -> Verdict:
    """The mean over what is asked for, as Flow-GRPO has it. With m found where n are asked for, a count is worth
    1 − |n − m| / n, which is below 0 for m > 2n.

    Each `include` clause gives its count, and if it names a colour or a place and the count is not exactly right, a 0.
    Where it is right, a colour gives 1 − |n − m| / n over the objects that have it, and a place, looked at where the
    colour is right, 1 or 0. An `exclude` clause for a class that an `include` clause counts adds nothing, since a
    surplus already costs there; for another class it adds 1 or 0.

    Args:
        floor: the least that a count is worth; None for no bound.
    """
    terms, faults = _check(request, found, position_threshold, exact=True)
    counted = {clause.name for clause in request.include}
    for clause in request.exclude:
        if clause.name not in counted:
            count = len(found.get(clause.name, ()))
            terms.append(float(count < clause.count))
            if count >= clause.count:
                faults.append(f"fewer than {clause.count} {clause.name} asked for, {count} found")
    if floor is not None:
        terms = [max(term, floor) for term in terms]
    return Verdict(math.fsum(terms) / len(terms), tuple(faults))


def _check(request: Request, found: Found, position_threshold: float, exact: bool) -> tuple[list[float], list[str]]:
    """The partial credit of each part of the `include` clauses, and what is wrong with them. `exact`: more objects than
    asked for are a fault too."""
    terms, faults, groups = [], [], []
    for clause in request.include:
        objects = found.get(clause.name, ())
        terms.append(_count_credit(len(objects), clause.count))
        groups.append(None)  # what later clauses refer to: nothing, until this one holds
        if len(objects) < clause.count or (exact and len(objects) > clause.count):
            faults.append(f"{clause.count} {clause.name} asked for, {len(objects)} found")
            if clause.color is not None or clause.relation is not None:
                terms.append(0.0)
            continue
        objects = objects[: clause.count]
        if clause.color is not None:
            colors = [detection.color for detection in objects]
            if None in colors:
                raise ValueError(f"the colour of a {clause.name} was not determined.")
            terms.append(_count_credit(colors.count(clause.color), clause.count))
            if colors.count(clause.color) < clause.count:
                faults.append(_color_fault(clause, colors))
                continue
        if clause.relation is not None:
            fault = _position_fault(clause, objects, groups[clause.target], request, position_threshold)
            terms.append(float(not fault))
            if fault:
                faults.append(fault)
                continue
        groups[-1] = objects
    return terms, faults


def _count_credit(count: int, wanted: int) -> float:
    return 1 - abs(wanted - count) / wanted


def _color_fault(clause: Include, colors: list[str]) -> str:
    ordered = sorted(set(colors), key=lambda color: (color != clause.color, color))
    listed = " and ".join(f"{colors.count(color)} {color}" for color in ordered)
    return f"{clause.count} {clause.color} {clause.name} asked for, {listed} found"


def _position_fault(
    clause: Include,
    objects: Sequence[Detection],
    target: Sequence[Detection] | None,
    request: Request,
    threshold: float,
) -> str:
    """What is wrong with the places of the objects, "" where nothing is."""
    other = request.include[clause.target].name
    if target is None:
        return f"no right {other} for the {clause.name} to be {clause.relation}"
    for detection in objects:
        for reference in target:
            sides = relations(detection.box, reference.box, threshold)
            if clause.relation not in sides:
                said = " and ".join(sorted(sides)) or "too close to say"
                return f"{clause.name} {clause.relation} {other} asked for, it is {said}"
    return ""
