"""The table of a benchmark: what its images scored, by tag and over all.

Besides the mean of each reward a line has the mean of each number among its details. Where these are `matched` of
`words`, the share of all words that match takes its place, as CVTG and OneIG count words. Where they are `atoms`, one
for each of the prompt's `skills`, there is a table by skill, as in GenEval 2.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from rl.data.prompts import PromptRecord
from rl.records.rows import PREFIX, reward_names
from rl.run.records import json_ready

_SHARE, _WHOLE = "matched", "words"
_ATOMS, _SKILLS = "atoms", "skills"


@dataclass(frozen=True)
class Line:
    """What the images of a group scored."""

    name: str
    images: int
    scores: dict[str, float | None]


@dataclass(frozen=True)
class ScoreTable:
    """Lines by group, by the key they are grouped by; then the mean over the lines of each, as GenEval's overall score
    is over its tags, and all images."""

    by: dict[str, list[Line]]
    means: dict[str, Line]
    total: Line

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return json_ready(asdict(self))

    def text(self) -> str:
        """The tables in columns."""
        lines = [*(line for group in self.by.values() for line in group), *self.means.values(), self.total]
        columns = list(dict.fromkeys(name for line in lines for name in line.scores))
        width = max(len(name) for name in [*self.by, *(line.name for line in lines)])
        parts: list[str] = []
        for key, group in self.by.items():
            parts += [_head(key, columns, width), *(_row(line, columns, width) for line in group)]
            parts += [_row(self.means[key], columns, width), ""]
        return "\n".join([*parts, _head("", columns, width), _row(self.total, columns, width)])


def score_table(rows: pa.Table, records: Sequence[PromptRecord], groups: Sequence[str]) -> ScoreTable:
    """The table of rows as an evaluation leaves them. groups: keys of the metadata to group by; one that no prompt has
    is left out."""
    known = {record.id: record for record in records}
    names = reward_names(rows)
    samples = [{**row, "details": json.loads(row["details"] or "{}")} for row in rows.to_pylist()]
    by: dict[str, list[Line]] = {}
    for key in groups:
        grouped: dict[str, list[dict[str, Any]]] = {}
        for sample in samples:
            if (value := known[sample["id"]].metadata.get(key)) is not None:
                grouped.setdefault(str(value), []).append(sample)
        if grouped:
            by[key] = [_line(name, grouped[name], names) for name in sorted(grouped, key=_in_order)]
    by |= _by_skill(samples, known, names)
    means = {key: _mean_of(f"mean over {key}", lines) for key, lines in by.items()}
    return ScoreTable(by, means, _line("all images", samples, names, of_prompts=True))


def _line(name: str, samples: Sequence[Mapping[str, Any]], rewards: Sequence[str], *, of_prompts: bool = False) -> Line:
    scores: dict[str, float | None] = {}
    for reward in rewards:
        own = [sample[f"{PREFIX}{reward}"] for sample in samples]
        scores[reward] = _mean(own)
        if of_prompts and (share := _any_of_prompt(samples, own)) is not None:
            scores[f"{reward}, any of a prompt's"] = share
        said = [sample["details"].get(reward) or {} for sample in samples]
        wholes = sum(one.get(_WHOLE) or 0 for one in said)
        if wholes:
            scores[f"{reward}, of all words"] = sum(one.get(_SHARE) or 0 for one in said) / wholes
        for key in dict.fromkeys(key for one in said for key, value in one.items() if _is_number(value)):
            if key not in (_SHARE, _WHOLE) or not wholes:
                scores[f"{reward} {key}"] = _mean([one.get(key) for one in said])
    return Line(name, len(samples), scores)


def _any_of_prompt(samples: Sequence[Mapping[str, Any]], scores: Sequence[float | None]) -> float | None:
    """The share of prompts of which an image is right, where scores say right or wrong and prompts have several."""
    best: dict[str, float] = {}
    for sample, score in zip(samples, scores, strict=True):
        if score not in (None, 0.0, 1.0):
            return None
        if score is not None:
            best[sample["id"]] = max(best.get(sample["id"], 0.0), score)
    return _mean(list(best.values())) if 0 < len(best) < len(samples) else None


def _by_skill(
    samples: Sequence[Mapping[str, Any]], known: Mapping[str, PromptRecord], rewards: Sequence[str]
) -> dict[str, list[Line]]:
    """Means of the atoms of each skill, over all images."""
    found: dict[str, dict[str, list[float]]] = {}
    for sample in samples:
        skills = known[sample["id"]].metadata.get(_SKILLS) or []
        for reward in rewards:
            atoms = (sample["details"].get(reward) or {}).get(_ATOMS) or []
            for skill, atom in zip(skills, atoms, strict=True) if len(skills) == len(atoms) else ():
                found.setdefault(str(skill), {}).setdefault(reward, []).append(atom)
    lines = [
        Line(skill, max(map(len, atoms.values())), {f"{name} {_ATOMS}": _mean(own) for name, own in atoms.items()})
        for skill, atoms in sorted(found.items())
    ]
    return {_SKILLS: lines} if lines else {}


def _mean_of(name: str, lines: Sequence[Line]) -> Line:
    columns = dict.fromkeys(column for line in lines for column in line.scores)
    means = {column: _mean([line.scores.get(column) for line in lines]) for column in columns}
    return Line(name, sum(line.images for line in lines), means)


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _in_order(name: str) -> tuple[int, str]:
    """Numbers by size, other names by the alphabet."""
    return (int(name), "") if name.isdecimal() else (0, name)


def _head(key: str, columns: Sequence[str], width: int) -> str:
    return "  ".join([f"{key:<{width}}", f"{'images':>6}", *columns])


def _row(line: Line, columns: Sequence[str], width: int) -> str:
    cells = [line.scores.get(column) for column in columns]
    shown = [f"{'' if c is None else f'{c:.4f}':>{len(name)}}" for c, name in zip(cells, columns, strict=True)]
    return "  ".join([f"{line.name:<{width}}", f"{line.images:>6}", *shown])
