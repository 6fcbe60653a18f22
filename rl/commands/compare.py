"""`uniar-rl compare A B`: two evaluations of the same prompts with the same noise, sample by sample.

uniar-rl compare runs/one runs/two                                       the last evaluation of each
uniar-rl compare runs/one/evaluations/step-000000.parquet runs/one       a run's first against its last
"""

import argparse
import json
import sys

from rl.report.evaluations import named_rows
from rl.report.paired import Comparison, Difference, compare_rows
from rl.run.records import json_ready


def run(arguments: argparse.Namespace) -> int:
    """The exit status: 1 where B is significantly worse, else 0."""
    (before, one), (after, two) = (named_rows(path) for path in (arguments.before, arguments.after))
    found = compare_rows(one, two, (before, after))
    print(as_json(before, after, found) if arguments.json else as_text(before, after, found))
    sys.stdout.flush()
    return int(is_worse(found))


def is_worse(found: Comparison) -> bool:
    return found.total is not None and found.total.worse


def as_json(before: str, after: str, found: Comparison) -> str:
    """One object: each difference with its interval, and whether B is significantly worse."""
    content = {
        "a": before,
        "b": after,
        "worse": is_worse(found),
        "total": None if found.total is None else found.total.plain(),
        "rewards": [one.plain() for one in found.rewards],
        "by_set": [one.plain() for one in found.by_set],
        "by_task": [one.plain() for one in found.by_task],
        "by_tag": [one.plain() for one in found.by_tag],
        "unpaired": found.unpaired,
    }
    return json.dumps(json_ready(content), indent=2, ensure_ascii=False)


def as_text(before: str, after: str, found: Comparison) -> str:
    """A table: a line per score, then the total by set, task and tag."""
    parts = [f"A  {before}", f"B  {after}", ""]
    tables = [("score", [*([found.total] if found.total else []), *found.rewards])]
    tables += [("total by set", found.by_set), ("total by task", found.by_task), ("total by tag", found.by_tag)]
    for title, differences in tables:
        if differences:
            parts += [*_table(title, differences), ""]
    if found.unpaired:
        doubt = "; totals that hold it cannot be compared" if found.total is not None else ""
        parts += [f"scored in one of the two only: {', '.join(found.unpaired)}{doubt}", ""]
    return "\n".join([*parts, verdict(found.total)])


def verdict(total: Difference | None) -> str:
    """A sentence on the total."""
    if total is None:
        return "No sample has a total of the same rewards in both."
    outcome = "B is significantly worse" if total.worse else "B is significantly better" if total.better else None
    how = f"gain {total.gain:+.4f}, 95% interval {total.low:+.4f} to {total.high:+.4f}"
    exact = "" if total.p is None else f", McNemar p = {total.p:.3g}"
    return f"{outcome or 'No significant difference'}: {how}{exact}; {total.won} won, {total.lost} lost."


def _table(title: str, differences: list[Difference]) -> list[str]:
    width = max(len(title), *(len(one.name) for one in differences))
    head = (
        f"{title:<{width}}  {'n':>6}  {'A':>8}  {'B':>8}  {'gain':>8}  {'95% interval':>18}  {'won':>5}  {'lost':>5}  p"
    )
    return [
        head,
        *(
            f"{one.name:<{width}}  {one.samples:>6}  {one.before:>8.4f}  {one.after:>8.4f}  {one.gain:>+8.4f}  "
            f"{f'{one.low:+.4f} {one.high:+.4f}':>18}  {one.won:>5}  {one.lost:>5}  "
            + ("" if one.p is None else f"{one.p:.3g}")
            for one in differences
        ),
    ]
