"""All rewards of a recipe together: prompts and images in, one table of scores out."""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rewards.attempt import Fault, score_samples
from rewards.base import Reward, RewardBatch, RewardError
from rewards.contract import counted, described
from rewards.spec import RewardSpec
from uniar.errors import UserError, did_you_mean

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RewardTable:
    """Scores of B samples under R rewards.

    Attributes:
        names: the R rewards, in the recipe's order.
        values: (B, R) float64 on the CPU; NaN where a reward does not apply or, under `on_error: skip`, failed.
        failures: for each reward, how many of those NaNs are failures.
        seconds: for each reward, the wall time it took.
    """

    names: tuple[str, ...]
    values: torch.Tensor
    failures: dict[str, int]
    seconds: dict[str, float]

    def column(self, name: str) -> torch.Tensor:
        """(B,) scores of one reward."""
        return self.values[:, self.names.index(name)]

    @staticmethod
    def cat(tables: Sequence["RewardTable"]) -> "RewardTable":
        """The tables of consecutive batches as one; counts and seconds add up."""
        names = tables[0].names
        if any(table.names != names for table in tables):
            raise ValueError(f"tables of different rewards cannot be joined: {[table.names for table in tables]}.")
        return RewardTable(
            names=names,
            values=torch.cat([table.values for table in tables]),
            failures={name: sum(table.failures[name] for table in tables) for name in names},
            seconds={name: sum(table.seconds[name] for table in tables) for name in names},
        )


class RewardSuite:
    """Builds the rewards of a recipe and scores batches with them, holding each to the contract of `Reward.score`.

    Attributes: `names` (R), `weights` ((R,) float64), `specs`, `rewards`.
    Raises UserError when two rewards have one name, or one of them cannot be built.
    """

    def __init__(self, specs: Sequence[RewardSpec]):
        self.specs = tuple(specs)
        self.names = tuple(spec.name for spec in self.specs)
        for name in self.names:
            if self.names.count(name) > 1:
                raise UserError(f"{self.names.count(name)} rewards are called {name!r}; give each its own 'name'.")
        self.weights = torch.tensor([spec.weight for spec in self.specs], dtype=torch.float64)
        self.rewards: tuple[Reward, ...] = tuple(spec.build() for spec in self.specs)
        self._loaded = False
        self._loop: _BackgroundLoop | None = None

    @classmethod
    def from_recipe(cls, entries: Sequence[Any], key: str = "rewards", folder: Path | None = None) -> "RewardSuite":
        """From the list under a recipe's `rewards:` (or `eval_rewards:`, said by `key`). `folder` is the recipe's, for
        plug-in files named relative to it. Errors name the entry they are about."""
        if entries is None or isinstance(entries, str | Mapping):
            raise UserError(f"{key} is {entries!r}; a list of rewards is needed.")
        specs = []
        for index, entry in enumerate(entries):
            try:
                specs.append(RewardSpec.from_mapping(entry, folder=folder))
            except UserError as error:
                raise UserError(f"{key}[{index}]: {error}") from error
        try:
            return cls(specs)
        except UserError as error:
            raise UserError(f"{key}: {error}") from error

    def check_tasks(self, tasks: Iterable[str]) -> None:
        """Raises UserError for a reward routed to a task that no prompt has: it would silently never apply."""
        known = sorted(set(tasks))
        for spec in self.specs:
            for task in spec.tasks or ():
                if task not in known:
                    listed = ", ".join(known) or "none"
                    raise UserError(
                        f"reward {spec.name!r} is for the task {task!r}, which no prompt has; tasks of the prompts: "
                        f"{listed}.{did_you_mean(task, known)}"
                    )

    def load(self) -> None:
        """Loads the weights of every reward. `score` does it at need; earlier, a missing file is found before the first
        rollout. Raises UserError."""
        if self._loaded:
            return
        for reward in self.rewards:
            try:
                reward.load()
            except UserError as error:
                raise UserError(f"reward {reward.name!r}: {error}") from error
            except Exception as error:
                raise UserError(f"reward {reward.name!r} does not load: {described(error)}") from error
        self._loaded = True

    def to(self, device: str | torch.device) -> None:
        """Moves the weights of every reward, for instance off the GPU between scoring phases."""
        for reward in self.rewards:
            reward.to(device)

    def score(self, batch: RewardBatch) -> RewardTable:
        """Scores B samples: each reward sees the samples of its tasks, rewards with an `async` score run beside the
        others. Raises RewardError for the first reward that fails under `on_error: stop`."""
        self.load()
        values = torch.full((len(batch), len(self.specs)), math.nan, dtype=torch.float64)
        failures, seconds = dict.fromkeys(self.names, 0), dict.fromkeys(self.names, 0.0)
        calls = []
        for column, spec in enumerate(self.specs):
            rows = [row for row, task in enumerate(batch.tasks) if spec.tasks is None or task in spec.tasks]
            if rows:
                calls.append((column, rows))
        waiting = [call for call in calls if self.rewards[call[0]].is_async]
        with ThreadPoolExecutor(max_workers=max(1, len(waiting))) as pool:
            if waiting and self._loop is None:
                self._loop = _BackgroundLoop()
            futures = {column: pool.submit(self._score_column, column, batch, rows) for column, rows in waiting}
            results = {
                column: self._score_column(column, batch, rows) for column, rows in calls if column not in futures
            }
            results.update({column: future.result() for column, future in futures.items()})
        for column, rows in calls:
            name = self.names[column]
            scores, failures[name], seconds[name] = results[column]
            values[rows, column] = torch.tensor(scores, dtype=torch.float64)
        return RewardTable(self.names, values, failures, seconds)

    def close(self) -> None:
        """Closes every reward, and ends the thread that serves the `async` ones, if there is one."""
        for reward in self.rewards:
            reward.close()
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def _score_column(self, column: int, batch: RewardBatch, rows: list[int]) -> tuple[list[float], int, float]:
        """Scores of the rows (NaN included), how many of them failed, seconds."""
        spec, reward = self.specs[column], self.rewards[column]
        start = time.perf_counter()
        scores, faults = score_samples(
            lambda part: self._loop.run(reward.score(part)) if reward.is_async else reward.score(part),
            batch.select(rows),
            name=spec.name,
            retries=spec.retries,
            pointwise=reward.pointwise,
            first_fault_only=spec.on_error == "stop",
        )
        for fault in dict.fromkeys(faults.values()):  # a batch that failed as a whole is reported once
            error = self._error(spec.name, fault, batch, rows)
            if spec.on_error == "stop":
                raise error
            logger.warning("%s; left out (on_error: skip).", error)
        return scores, len(faults), time.perf_counter() - start

    @staticmethod
    def _error(name: str, fault: Fault, batch: RewardBatch, rows: list[int]) -> RewardError:
        # The reward saw only the rows of its tasks; the user knows the samples by their place in the whole batch.
        row = rows[fault.index or 0]
        where = f"sample {row}"
        if fault.index is None:
            where = f"a batch of {counted(len(rows), 'sample')}, the first of them sample {row}"
        prompt = batch.prompts[row]
        shown = prompt if len(prompt) <= 80 else prompt[:77] + "..."
        message = f"reward {name!r} {fault.text}, on {where} (prompt {shown!r})"
        error = RewardError(message, reward=name, index=None if fault.index is None else row, prompt=prompt)
        error.__cause__ = fault.cause
        return error


class _BackgroundLoop:
    """An event loop in a thread of its own, kept between batches so that clients can keep their connections."""

    def __init__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="async-rewards", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
