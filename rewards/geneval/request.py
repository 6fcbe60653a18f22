"""What a GenEval record asks for (Ghosh et al. 2023, arXiv:2310.11513): its metadata, read and checked."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from uniar.errors import UserError, did_you_mean

SKILLS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")

# fmt: off
OBJECT_NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote",
    "computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock",
    "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
"""COCO's 80 object classes in COCO's order, under the names that GenEval's prompts use."""
# fmt: on

COCO_NAMES = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}
"""The classes that COCO names otherwise; both names are understood."""


@dataclass(frozen=True)
class Include:
    """Asks for `count` objects of the class `name`, all of the colour `color` (None: any), and each of them in the
    `relation` (one of RELATIONS; None: anywhere) to each object of the clause with index `target`, an earlier one."""

    name: str
    count: int = 1
    color: str | None = None
    relation: str | None = None
    target: int | None = None


@dataclass(frozen=True)
class Exclude:
    """Asks for fewer than `count` objects of the class `name`."""

    name: str
    count: int = 1


@dataclass(frozen=True)
class Request:
    """All that one prompt asks for. `tag` is its skill, one of SKILLS, or None where the record names none."""

    include: tuple[Include, ...]
    exclude: tuple[Exclude, ...] = ()
    tag: str | None = None


def read_request(
    metadata: Mapping[str, Any], names: tuple[str, ...] = OBJECT_NAMES, colors: tuple[str, ...] = COLORS
) -> Request | None:
    """The request in a record's metadata: `{"tag", "include": [{"class", "count", "color", "position"}], "exclude":
    [{"class", "count"}]}` with `position` as [relation, index of an earlier clause]. A key whose value is None counts
    as left out, `count` is then 1. None where the metadata has no clause at all. `names` and `colors` are those that it
    may use.

    Raises UserError for what cannot be read: an unknown tag, class, colour, relation or key, a count below 1.
    """
    include, exclude = (_clauses(metadata, key) for key in ("include", "exclude"))
    if not include and not exclude:
        return None
    tag = metadata.get("tag")
    if tag is not None:
        _check_known(tag, SKILLS, "tag")
    return Request(
        include=tuple(_include(clause, index, names, colors) for index, clause in enumerate(include)),
        exclude=tuple(_exclude(clause, index, names) for index, clause in enumerate(exclude)),
        tag=tag,
    )


def _clauses(metadata: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    clauses = metadata.get(key)
    clauses = [] if clauses is None else clauses
    if not isinstance(clauses, list | tuple) or not all(isinstance(clause, Mapping) for clause in clauses):
        raise UserError(f"metadata {key!r} is {clauses!r}; a list of clauses such as {{'class': 'dog'}} is needed.")
    return [{name: value for name, value in clause.items() if value is not None} for clause in clauses]


def _include(clause: Mapping[str, Any], index: int, names: tuple[str, ...], colors: tuple[str, ...]) -> Include:
    where = f"include[{index}]"
    _check_keys(clause, ("class", "count", "color", "position"), where)
    color, relation, target = clause.get("color"), None, None
    if color is not None:
        _check_known(color, colors, f"{where} color")
    if "position" in clause:
        position = clause["position"]
        if not isinstance(position, list | tuple) or len(position) != 2:
            raise UserError(f"{where} position is {position!r}; [relation, index of an earlier clause] is needed.")
        relation, target = position
        _check_known(relation, RELATIONS, f"{where} position")
        if not isinstance(target, int) or isinstance(target, bool) or not 0 <= target < index:
            raise UserError(f"{where} position refers to clause {target!r}; the index of an earlier one is needed.")
    return Include(_name(clause, names, where), _count(clause, where), color, relation, target)


def _exclude(clause: Mapping[str, Any], index: int, names: tuple[str, ...]) -> Exclude:
    where = f"exclude[{index}]"
    _check_keys(clause, ("class", "count"), where)
    return Exclude(_name(clause, names, where), _count(clause, where))


def _name(clause: Mapping[str, Any], names: tuple[str, ...], where: str) -> str:
    name = clause.get("class")
    if isinstance(name, str) and name not in names:
        name = COCO_NAMES.get(name, name)
    _check_known(name, names, f"{where} class")
    return name


def _count(clause: Mapping[str, Any], where: str) -> int:
    count = clause.get("count", 1)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise UserError(f"{where} count is {count!r}; a whole number of at least 1 is needed.")
    return count


def _check_keys(clause: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    for key in clause:
        if key not in known:
            raise UserError(f"{where} has no {key!r}; its keys: {', '.join(known)}.{did_you_mean(str(key), known)}")


def _check_known(value: Any, known: tuple[str, ...], what: str) -> None:
    if value not in known:
        listed = "one of COCO's 80 classes" if known is OBJECT_NAMES else ", ".join(known)
        raise UserError(f"{what} is {value!r}; known: {listed}.{did_you_mean(str(value), known)}")
