"""Two evaluations of the same samples, compared sample by sample: differences, their intervals, exact tests.

The interval is the percentile bootstrap's (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13)
over prompts, because the samples of one prompt are alike. Scores that are 0 or 1 are compared by McNemar's exact test
(Psychometrika 12, 1947): of the samples that differ, each is as likely to be won as lost.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.stats import binomtest

from rl.records.rows import PREFIX, reward_names
from uniar.errors import UserError

RESAMPLES = 5000
LEVEL = 0.95
_CHUNK = 500


@dataclass(frozen=True)
class Difference:
    """A score before and after, over the samples that have it both times."""

    name: str
    samples: int
    before: float
    after: float
    gain: float
    low: float
    """of the gain's 95% interval"""
    high: float
    won: int
    """samples whose score rose"""
    lost: int
    p: float | None
    """of McNemar's exact test, where all scores are 0 or 1"""

    @property
    def worse(self) -> bool:
        return self.gain < 0 and (self.high < 0 if self.p is None else self.p < 1 - LEVEL)

    @property
    def better(self) -> bool:
        return self.gain > 0 and (self.low > 0 if self.p is None else self.p < 1 - LEVEL)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "worse": self.worse, "better": self.better}


@dataclass(frozen=True)
class Comparison:
    """All scores of two evaluations, and the total by held-out set, task and tag, each where there are several."""

    total: Difference | None
    """None where no sample has a total both times, and where no reward made both"""
    rewards: list[Difference]
    by_set: list[Difference]
    by_task: list[Difference]
    by_tag: list[Difference]
    unpaired: list[str]
    """rewards that only one of the two was scored with"""


def paired_rows(before: pa.Table, after: pa.Table, names: tuple[str, str] = ("A", "B")) -> tuple[pa.Table, pa.Table]:
    """The rows of two evaluations in the order of the first, sample by sample. names: what errors call them. Raises
    UserError for other prompts, and for other noise."""
    one, two = ({key: row for row, key in enumerate(_samples(rows))} for rows in (before, after))
    if one.keys() != two.keys():
        shared = len(one.keys() & two.keys())
        raise UserError(
            f"{names[0]} and {names[1]} are of other prompts: they have {len(one)} and {len(two)} samples, and share "
            f"{shared}; evaluate both on the same prompts."
        )
    keys = list(one)
    rows = before.take([one[key] for key in keys]), after.take([two[key] for key in keys])
    for column, what in (("prompt", "prompts"), ("seed", "noise")):
        values = zip(*(table[column].to_pylist() for table in rows), strict=True)
        if different := [key for key, (a, b) in zip(keys, values, strict=True) if a != b]:
            _, identity, sample = different[0]
            raise UserError(
                f"{names[0]} and {names[1]} are of other {what}: {len(different)} of {len(keys)} samples differ in it, "
                f"the first of them sample {sample} of prompt {identity!r}; evaluate both with the same prompts and "
                "evaluate.seed."
            )
    return rows


def _samples(rows: pa.Table) -> Iterator[tuple[str | None, str, int]]:
    """What tells the samples of an evaluation apart."""
    return zip(*(rows[name].to_pylist() for name in ("set", "id", "sample")), strict=True)


def compare_rows(before: pa.Table, after: pa.Table, names: tuple[str, str] = ("A", "B")) -> Comparison:
    """What changed between two evaluations. Raises UserError as `paired_rows` does."""
    before, after = paired_rows(before, after, names)
    rewards, others = reward_names(before), reward_names(after)
    clusters = list(zip(before["set"].to_pylist(), before["id"].to_pylist(), strict=True))
    columns = {name: _columns(before, after, f"{PREFIX}{name}") for name in rewards if name in others}
    totals = _columns(before, after, "total")
    if rewards and others and not columns:
        totals = np.full_like(totals[0], np.nan), totals[1]
    found = (difference(name, *pair, clusters) for name, pair in columns.items())
    return Comparison(
        difference("total", *totals, clusters),
        [one for one in found if one is not None],
        *(list(_by(key, before, totals, clusters)) for key in ("set", "task", "tag")),
        unpaired=sorted({*rewards} ^ {*others}),
    )


def difference(name: str, before: np.ndarray, after: np.ndarray, clusters: list[Any]) -> Difference | None:
    """Of (N,) scores of the same samples, NaN where there is none; None where no sample has both. clusters: (N,) what
    belongs together, such as the samples of a prompt."""
    there = ~(np.isnan(before) | np.isnan(after))
    if not there.any():
        return None
    one, two = before[there], after[there]
    gains = two - one
    low, high = interval(gains, [cluster for cluster, both in zip(clusters, there, strict=True) if both])
    won, lost = int((gains > 0).sum()), int((gains < 0).sum())
    binary = bool(np.isin(np.concatenate([one, two]), (0.0, 1.0)).all())
    p = None if not binary else float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
    means = float(one.mean()), float(two.mean())
    return Difference(name, len(gains), *means, float(gains.mean()), low, high, won, lost, p)


def interval(values: np.ndarray, clusters: list[Any] | None = None) -> tuple[float, float]:
    """The 95% interval of the mean of (N,) numbers, always the same for the same numbers; of a single cluster NaN."""
    order = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters or range(len(values))))}
    if len(order) < 2:
        return float("nan"), float("nan")
    index = np.arange(len(values)) if clusters is None else np.array([order[cluster] for cluster in clusters])
    sums, counts = np.bincount(index, values, len(order)), np.bincount(index, minlength=len(order)).astype(float)
    generator, means = np.random.default_rng(0), []
    for _ in range(RESAMPLES // _CHUNK):
        drawn = generator.multinomial(len(order), np.full(len(order), 1 / len(order)), _CHUNK).astype(float)
        means.append(drawn @ sums / (drawn @ counts))
    low, high = np.quantile(np.concatenate(means), ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def _columns(before: pa.Table, after: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    return numbers_of(before, name), numbers_of(after, name)


def numbers_of(rows: pa.Table, name: str) -> np.ndarray:
    """(N,) float64 of a column, NaN for null."""
    return np.array([np.nan if value is None else value for value in rows[name].to_pylist()], dtype=np.float64)


def _by(key: str, rows: pa.Table, totals: tuple[np.ndarray, np.ndarray], clusters: list[Any]) -> Iterator[Difference]:
    groups = rows[key].to_pylist()
    named = sorted({group for group in groups if group is not None})
    for group in named if len(named) > 1 else ():
        places = [place for place, own in enumerate(groups) if own == group]
        found = difference(group, *(column[places] for column in totals), [clusters[place] for place in places])
        if found is not None:
            yield found
