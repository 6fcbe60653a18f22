"""The numbers of an update, from all its micro-batches and processes, each reduced as what it is.

A largest value is the largest of all, not a mean of largest ones. All numbers of an update travel in one collective.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator

Kind = Literal["mean", "max", "min", "sum"]

EXTREMES: dict[str, Callable[..., float]] = {"max": np.max, "min": np.min}
"""what is left of several values; NaN where one of them is"""


class UpdateMetrics:
    """Collects a row of metrics per micro-batch, and reduces the rows of an update, over processes too.

    The names are fixed beforehand, so that every process sends as many numbers, whatever it has measured: a metric that
    a row lacks does not count in it, and one that all rows lack is not there.
    """

    def __init__(self, kinds: Mapping[str, Kind]) -> None:
        self.kinds = dict(kinds)
        self._rows: list[Tensor] = []
        self._counts: list[list[float]] = []

    def add(self, metrics: Mapping[str, Tensor], count: float = 1) -> None:
        """A row: scalars by name. `count`: how many samples they speak of, the weight of means.

        Waits for no device. Every process adds equally many rows per update. Raises KeyError for a name that is not
        among the fixed ones.
        """
        if unknown := metrics.keys() - self.kinds.keys():
            raise KeyError(f"metrics without a kind: {', '.join(sorted(unknown))}")
        zero = next(iter(metrics.values())).new_zeros(())
        self._rows.append(torch.stack([metrics.get(name, zero).detach().float() for name in self.kinds]))
        self._counts.append([count * (name in metrics) for name in self.kinds])

    def reduce(self, accelerator: "Accelerator") -> dict[str, float]:
        """The metrics of all rows of all processes, the same on each; the rows are then forgotten. One collective."""
        rows = torch.stack(self._rows)
        rows = torch.stack([rows, torch.tensor(self._counts).to(rows)], dim=1)
        every = accelerator.gather(rows).double().cpu().numpy()
        self._rows, self._counts = [], []
        found = {}
        for column, (name, kind) in enumerate(self.kinds.items()):
            values, counts = every[every[:, 1, column] > 0, :, column].T
            if not len(values):
                continue
            if kind == "mean":
                found[name] = float((values * counts).sum() / counts.sum())
            else:
                found[name] = float(EXTREMES.get(kind, np.sum)(values))
        return found
