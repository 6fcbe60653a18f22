"""Evaluation on several named held-out sets, one after the other."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from rl.evaluation.evaluate import Evaluation, Evaluator

if TYPE_CHECKING:
    from accelerate import Accelerator

    from uniar.modeling_uniar import UniARForConditionalGeneration


class SeveralSets:
    """What evaluates each of `evaluate.sets`; used as an Evaluator of all their samples, set by set."""

    def __init__(self, evaluators: Sequence[Evaluator]) -> None:
        """evaluators: each with a name of its own."""
        self.evaluators = tuple(evaluators)
        self.shown: list[int] = []
        """rows of the samples of the grid"""
        first = 0
        for evaluator in self.evaluators:
            self.shown += [first + number for number in evaluator.shown]
            first += len(evaluator.samples)

    def run(self, model: "UniARForConditionalGeneration", accelerator: "Accelerator | None" = None) -> Evaluation:
        """As `Evaluator.run`: the samples of all sets together, and each set by itself."""
        return joined({str(each.name): each.run(model, accelerator) for each in self.evaluators})


def joined(found: Mapping[str, Evaluation]) -> Evaluation:
    """Evaluations of sets that may have other rewards as one: NaN where a set has not a reward."""
    parts, names = list(found.values()), tuple(dict.fromkeys(name for one in found.values() for name in one.names))
    values = torch.cat([_columns(one, names) for one in parts])
    tables = [one.rows for one in parts if one.rows is not None]
    return Evaluation(
        names,
        values,
        torch.cat([one.totals for one in parts]),
        [shown for one in parts for shown in one.shown],
        sum(one.seconds for one in parts),
        _details(parts),
        [note for one in parts for note in one.notes],
        pa.concat_tables(tables, promote_options="default") if tables else None,
        sets=found,
    )


def _columns(one: Evaluation, names: Sequence[str]) -> torch.Tensor:
    """(N, R) of all rewards."""
    values = torch.full((len(one.totals), len(names)), math.nan, dtype=torch.float64)
    values[:, [names.index(name) for name in one.names]] = one.values
    return values


def _details(parts: Sequence[Evaluation]) -> dict[str, list[Any]]:
    said = dict.fromkeys(name for one in parts for name in one.details)
    return {name: [row for one in parts for row in one.details.get(name, [None] * len(one.totals))] for name in said}
