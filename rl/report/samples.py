"""The samples that a page shows: before and after, training groups, and questions whose answer flipped."""

import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from rl.records.rows import PREFIX, reward_names, shared_details
from rl.report.evaluations import whole_rows
from rl.report.pictures import PictureStore
from rl.report.run_data import RunData
from rl.run.records import scores_in

_SAID = 700
"""characters of what rewards say of a sample; more is cut"""
_WRITTEN = 1500
"""characters of a text that a sample wrote; more is cut"""
_FLIPS = 80


def gallery(sides: Sequence[tuple[str, int, pa.Table]], store: PictureStore) -> dict[str, Any]:
    """Section 5: samples with what each side made and how it scored. sides: label, update, and rows in one order."""
    rewards = list(dict.fromkeys(name for _, _, rows in sides for name in reward_names(rows)))
    columns = [rows.to_pylist() for _, _, rows in sides]
    samples = []
    for number, row in enumerate(columns[0] if columns else ()):
        shown = {"id": row["id"], "n": row["sample"], "prompt": row["prompt"], "task": row["task"], "tag": row["tag"]}
        shown |= {} if row["set"] is None else {"set": row["set"]}
        shown |= {} if row["source"] is None else {"s": store.add(row["source"])}
        shown["sides"] = [_side(column[number], rewards, store) for column in columns]
        samples.append(shown)
    return {
        "sides": [{"label": label, "step": step} for label, step, _ in sides],
        "rewards": rewards,
        "samples": samples,
    }


def _side(row: dict[str, Any], rewards: Sequence[str], store: PictureStore) -> dict[str, Any]:
    said = {name: _said(entries) for name, entries in shared_details(row["details"]).items()}
    scores = [_rounded(row.get(f"{PREFIX}{name}")) for name in rewards]
    why = [said.get(name, "") for name in rewards]
    found = {"t": _rounded(row["total"]), "r": scores, "p": store.add(row["picture"])}
    return found | ({"w": _written(row)} if row["texts"] else {}) | ({"why": why} if any(why) else {})


def _written(row: dict[str, Any]) -> list[str]:
    """What a sample wrote, turn by turn."""
    return [_cut(text, _WRITTEN) for text in row["texts"] or ()]


def _said(entries: Any) -> str:
    if isinstance(entries, dict) and "why" in entries:
        text = str(entries["why"])
    elif isinstance(entries, dict):
        text = ", ".join(f"{key} {value}" for key, value in entries.items())
    else:
        text = str(entries)
    return _cut(text, _SAID)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def training_groups(run: RunData, store: PictureStore) -> list[dict[str, Any]]:
    """Section 7: the first and the last rollout of which groups were kept; the best sample of a prompt first."""
    found = []
    for step in dict.fromkeys([min(run.groups), max(run.groups)] if run.groups else ()):
        prompts: dict[str, list[dict[str, Any]]] = {}
        kept = whole_rows(run.groups[step])
        for row in [] if kept is None else kept.to_pylist():
            prompts.setdefault(row["id"], []).append(row)
        groups = []
        for rows in prompts.values():
            rows.sort(key=lambda row: -(row["advantage"] or 0.0))
            images = [
                {
                    "picture": store.add(row["picture"]),
                    "texts": _written(row),
                    "total": row["total"],
                    "advantage": row["advantage"] or 0.0,
                }
                for row in rows
            ]
            source = store.add(rows[0]["source"])
            groups.append({"prompt": rows[0]["prompt"], "source": source, "images": images})
        found.append({"step": step, "groups": groups})
    return found


def flipped_questions(run: RunData, store: PictureStore) -> dict[str, Any] | None:
    """Section 8; None where questions were not asked twice."""
    if len(run.answers) < 2:
        return None
    first, last = run.answers[min(run.answers)], run.answers[max(run.answers)]
    before, after = scores_in(first["exact_match"]), scores_in(last["exact_match"])
    if len(before) != len(after):
        return None
    asked = run.questions.to_pylist() if run.questions is not None and len(run.questions) == len(before) else None
    flips = []
    for number, (one, two) in enumerate(zip(before, after, strict=True)):
        if one != two and len(flips) < _FLIPS:
            question = asked[number] if asked else {"question": f"question {number + 1}", "answer": "", "picture": None}
            said = first["answers"][number], last["answers"][number]
            flips.append({**question, "picture": store.add(question["picture"]), "said": said, "won": two > one})
    flips.sort(key=lambda flip: flip["won"])
    lost = sum(a > b for a, b in zip(before, after, strict=True))
    won = sum(a < b for a, b in zip(before, after, strict=True))
    return {
        "flips": flips,
        "won": won,
        "lost": lost,
        "asked": len(before),
        "steps": (min(run.answers), max(run.answers)),
    }
