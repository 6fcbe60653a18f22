"""All rewards of a recipe together: prompts and images in, one table of scores out."""

import asyncio
import logging
import threading
from collections.abc import Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from rewards.attempt import Fault, Outcome, score_samples
from rewards.contract.base import Reward, RewardBatch, RewardError
from rewards.contract.combine import term
from rewards.contract.protocol import counted, described
from rewards.contract.spec import RewardSpec
from rewards.contract.table import RewardTable
from rewards.models.model_reward import default_device
from uniar.errors import UserError, did_you_mean

logger = logging.getLogger(__name__)


class RewardSuite:
    """Builds the rewards of a recipe and scores batches with them, holding each to the contract of `Reward.score`.

    Attributes: `names` (R), `specs`, `rewards`.
    Raises UserError when two rewards have one name, or one of them cannot be built.
    """

    def __init__(self, specs: Sequence[RewardSpec]):
        self.specs = tuple(specs)
        self.names = tuple(str(spec.name) for spec in self.specs)
        for name in self.names:
            if self.names.count(name) > 1:
                raise UserError(f"{self.names.count(name)} rewards are called {name!r}; give each its own 'name'.")
        self.rewards: tuple[Reward, ...] = tuple(spec.build() for spec in self.specs)
        self._ranges = [spec.range_for(reward) for spec, reward in zip(self.specs, self.rewards, strict=True)]
        self._loaded = False
        self._loop: _BackgroundLoop | None = None
        self._users, self._moving = 0, threading.Lock()

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
            for task in spec.named_tasks:
                if task not in known:
                    listed = ", ".join(known) or "none"
                    raise UserError(
                        f"reward {spec.name!r} is for the task {task!r}, which no prompt has; tasks of the prompts: "
                        f"{listed}.{did_you_mean(task, known)}"
                    )

    def check_samples(self, samples: Iterable[tuple[str, str, str | None, Mapping[str, Any]]]) -> None:
        """Raises UserError for the first of (where it stands, prompt, task, metadata) that would stop a run because a
        reward that applies to it refuses it (`Reward.check_sample`)."""
        for where, prompt, task, metadata in samples:
            for spec, reward in zip(self.specs, self.rewards, strict=True):
                if spec.on_error == "stop" and spec.weight_for(task) is not None:
                    try:
                        reward.check_sample(prompt, metadata)
                    except UserError as error:
                        raise UserError(f"{where}: reward {reward.name!r}: {error}") from error

    def check_columns(self, tasks: Sequence[str | None], metadata: Sequence[Mapping[str, Any]]) -> None:
        """Raises UserError for a reward that needs a column which none of these samples has, of those it scores."""
        for spec, reward in zip(self.specs, self.rewards, strict=True):
            rows = [row for task, row in zip(tasks, metadata, strict=True) if spec.weight_for(task) is not None]
            if rows:
                try:
                    reward.check_columns(rows)
                except UserError as error:
                    raise UserError(f"reward {spec.name!r}: {error}") from error

    def load(self) -> None:
        """Loads the weights of every reward. `score` does it at need; earlier, a missing file is found before the first
        rollout. Raises UserError."""
        if self._loaded:
            return
        for spec, reward in zip(self.specs, self.rewards, strict=True):
            try:
                if spec.offload and not self._users:
                    reward.to("cpu")
                reward.load()
            except UserError as error:
                raise UserError(f"reward {reward.name!r}: {error}") from error
            except (Exception, SystemExit) as error:
                raise UserError(f"reward {reward.name!r} does not load: {described(error)}") from error
        self._loaded = True

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Within the block, rewards with `offload` have their weights on the GPU, outside of it on the CPU. `score`
        enters it itself; around several calls, it saves copies."""
        with self._moving:
            if self._users == 0:
                self._move(default_device())
            self._users += 1
        try:
            yield
        finally:
            with self._moving:
                self._users -= 1
                if self._users == 0:
                    self._move("cpu")

    def _move(self, device: str | torch.device) -> None:
        for spec, reward in zip(self.specs, self.rewards, strict=True):
            if spec.offload:
                reward.to(device)

    def weights_for(self, tasks: Sequence[str | None]) -> torch.Tensor:
        """(B, R) float64: the weight of each reward for samples of these tasks, 0 where it does not score them."""
        rows = [[spec.weight_for(task) or 0.0 for spec in self.specs] for task in tasks]
        return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(self.specs))

    def terms(self, values: torch.Tensor) -> torch.Tensor:
        """(B, R) scores → what the weights multiply: each reward clipped and normalised as its entry says."""
        columns = [term(values[:, column], spec.clip, self._ranges[column]) for column, spec in enumerate(self.specs)]
        return torch.stack(columns, dim=1) if columns else values

    @contextmanager
    def bound(self, policy: AbstractContextManager[torch.nn.Module], processor: Any) -> Iterator[None]:
        """Lets rewards with `wants_policy` use a UniAR model and its processor within the block. `policy` is a context
        that yields the model (it may gather a sharded one); without such a reward it is not entered."""
        wanting = [reward for reward in self.rewards if reward.wants_policy]
        if not wanting:
            yield
            return
        with policy as model:
            for reward in wanting:
                reward.bind(model, processor)
            try:
                yield
            finally:
                for reward in wanting:
                    reward.bind(None, None)

    def score(
        self, batch: RewardBatch, *, only: Collection[str] | None = None, numbers: Sequence[int] | None = None
    ) -> RewardTable:
        """Scores B samples: each reward sees those of `rows_for`, rewards with an `async` score run beside the others.

        Args:
            only: names of the rewards to ask; the others have no score. None for all.
            numbers: what the samples are called in messages, for a batch that is part of a larger one.

        Raises RewardError for the first reward that fails under `on_error: stop`.
        """
        self.load()
        numbers = range(len(batch)) if numbers is None else numbers
        table = RewardTable.empty(self.names, self.weights_for(batch.tasks))
        calls = []
        for column, name in enumerate(self.names):
            rows = self.rows_for(column, batch)
            if rows and (only is None or name in only):
                calls.append((column, rows))
        waiting = [call for call in calls if self.rewards[call[0]].is_async]
        outcomes: dict[int, Outcome] = {}
        with self.on_device(), ThreadPoolExecutor(max_workers=max(1, len(waiting))) as pool:
            if waiting and self._loop is None:
                self._loop = _BackgroundLoop()

            def how(column: int) -> dict[str, Any]:
                spec, wait = self.specs[column], self._loop and self._loop.run
                return {"wait": wait, "retries": spec.retries, "first_fault_only": spec.on_error == "stop"}

            futures = {
                column: pool.submit(score_samples, self.rewards[column], batch.select(rows), **how(column))
                for column, rows in waiting
            }
            for column, rows in calls:
                if column not in futures:
                    outcomes[column] = score_samples(self.rewards[column], batch.select(rows), **how(column))
                    self._report(column, outcomes[column], batch, rows, numbers)
            for column, rows in waiting:
                outcomes[column] = futures[column].result()
                self._report(column, outcomes[column], batch, rows, numbers)
        for column, rows in calls:
            name = self.names[column]
            outcome = outcomes[column]
            table.seconds[name] = outcome.seconds
            table.values[rows, column] = torch.tensor(outcome.scores, dtype=torch.float64)
            table.failed[[rows[fault] for fault in outcome.faults], column] = True
            if outcome.details:
                said = dict(zip(rows, outcome.details, strict=True))
                table.details[name] = [said.get(row) for row in range(len(batch))]
        return table

    def rows_for(self, column: int, batch: RewardBatch) -> list[int]:
        """The samples that reward number `column` is asked about: of its tasks, and with an image if it needs one."""
        spec, needs_image = self.specs[column], self.rewards[column].needs_image
        return [
            row
            for row, (task, image) in enumerate(zip(batch.tasks, batch.images, strict=True))
            if spec.weight_for(task) is not None and (image is not None or not needs_image)
        ]

    def close(self) -> None:
        """Closes every reward, and ends the thread that serves the `async` ones, if there is one."""
        for reward in self.rewards:
            reward.close()
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def _report(
        self, column: int, outcome: Outcome, batch: RewardBatch, rows: list[int], numbers: Sequence[int]
    ) -> None:
        """Raises RewardError for the first fault under `on_error: stop`; else says that samples are left out."""
        spec = self.specs[column]
        for fault in dict.fromkeys(outcome.faults.values()):  # a batch that failed as a whole is reported once
            error = self._error(self.names[column], fault, batch, rows, numbers)
            if spec.on_error == "stop":
                raise error
            logger.warning("%s; left out (on_error: skip).", error)

    @staticmethod
    def _error(name: str, fault: Fault, batch: RewardBatch, rows: list[int], numbers: Sequence[int]) -> RewardError:
        # The reward saw only the rows of its tasks; the user knows the samples by their place in the whole batch.
        row = rows[fault.index or 0]
        where = f"sample {numbers[row]}"
        if fault.index is None:
            where = f"a batch of {counted(len(rows), 'sample')}, the first of them sample {numbers[row]}"
        prompt = batch.prompts[row]
        shown = prompt if len(prompt) <= 80 else prompt[:77] + "..."
        message = f"reward {name!r} {fault.text}, on {where} (prompt {shown!r})"
        error = RewardError(message, reward=name, index=None if fault.index is None else numbers[row], prompt=prompt)
        error.__cause__ = fault.cause
        return error


class _BackgroundLoop:
    """An event loop in a thread of its own, kept between batches so that clients can keep their connections."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="async-rewards", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
