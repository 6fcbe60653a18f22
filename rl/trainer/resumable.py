"""TRL's GRPOTrainer, extended so that a run resumes to the bit, whatever it trains on.

Order of prompts, checkpoints that are whole or not there, seconds of each phase. rl/trainer/trainer.py builds on it.
"""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from torch import Tensor, nn
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import RepeatSampler

from rl.algorithm.metrics import EXTREMES, Kind
from rl.checkpoint.folders import Files, looked_at, publish, rotate, shares, writing
from rl.checkpoint.layout import CHECKPOINT, SAVING
from rl.checkpoint.resume import apply_settings, forward_schedule, settings_of_groups
from rl.checkpoint.stateful_callback import StatefulCallback
from rl.policy.loading import base_model
from rl.policy.turns import Texts, Turn
from rl.records.environment import peak_memory_gb
from rl.run.folder import RunFolder
from rl.trainer.gradient_size import GradientSize
from uniar.seeds import seed_of

if TYPE_CHECKING:
    from uniar.modeling_uniar import UniARForConditionalGeneration


class PromptSampler(RepeatSampler):
    """TRL's RepeatSampler, whose order in an epoch depends on the seed and the epoch alone.

    TRL's own draws each epoch's order from what the epochs before have left of one generator, so a run resumed in a
    later epoch would see other prompts than the uninterrupted one. The epoch is asked for, not told: after a resume on
    several processes no one tells it.
    """

    def __init__(self, *args: Any, epoch: Callable[[], int], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(seed_of("prompt order", self.seed, self.epoch()))
        return super().__iter__()


class ResumableGRPOTrainer(GRPOTrainer):
    """TRL's trainer without its own ideas of a rollout and a loss."""

    def __init__(
        self,
        *,
        stateful_callbacks: Sequence[StatefulCallback] = (),
        callbacks: Sequence[TrainerCallback] = (),
        only_weights: bool = False,
        **kwargs: Any,
    ) -> None:
        """only_weights: the model has the weights of the checkpoint that the run goes on from already, and the
        optimizer starts anew (rl/checkpoint/resume.py)."""
        self.stateful_callbacks, self.only_weights = list(stateful_callbacks), only_weights
        self.resumed_from: Path | None = None
        self._saving = False
        self._seconds: dict[str, float] = {}
        self._made = {"images": 0, "tokens": 0, "text_tokens": 0}
        self._logged_step = 0
        self._first_rollout_step: int | None = None
        self._gradient_size: GradientSize | None = None
        super().__init__(callbacks=[*self.stateful_callbacks, *callbacks], **kwargs)
        for callback in self.stateful_callbacks:
            callback.attach(self)

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        self.resumed_from = None if resume_from_checkpoint is None else Path(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, **kwargs)

    @contextmanager
    def policy(self) -> Iterator["UniARForConditionalGeneration"]:
        """The bare model, gathered if sharded, without gradients and in the precision of the update."""
        with (
            torch.no_grad(),
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                # Not TRL's choice for adapters under ZeRO-3: reentrant, what two forwards of an update share would get
                # its gradient in two pieces, of which ZeRO-3 keeps one.
                gradient_checkpointing_kwargs={"use_reentrant": False},
            ) as unwrapped,
            self.accelerator.autocast(),
        ):
            yield base_model(unwrapped)

    @property
    def bare_policy(self) -> "UniARForConditionalGeneration":
        """The model without wrappers, its weights as the engine leaves them."""
        return base_model(self.accelerator.unwrap_model(self.model))

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The weights that are trained, under the names that the policy itself has for them."""
        model = self.accelerator.unwrap_model(self.model)
        return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds what happens inside to the seconds of a phase, logged as seconds per update."""
        started = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - started

    def _get_train_sampler(self, dataset: Dataset | None = None) -> "PromptSampler":
        """TRL's order of prompts, but with the seed of the data and the same after a resume."""
        return PromptSampler(
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self._micro_batches_of_rollout,
            shuffle=self.shuffle_dataset,
            seed=self.args.data_seed,
            epoch=lambda: int(self.state.epoch or 0),
        )

    @property
    def updates_of_rollout(self) -> int:
        """Optimizer updates that each rollout serves; checkpoints fall between rollouts."""
        return max(1, self._micro_batches_of_rollout // self.args.gradient_accumulation_steps)

    @property
    def _micro_batches_of_rollout(self) -> int:
        """Micro-batches that are taken from a rollout before the next is drawn."""
        return self.args.steps_per_generation * self.num_iterations

    @property
    def serves_several_updates(self) -> bool:
        return self.args.gradient_accumulation_steps % self._micro_batches_of_rollout != 0

    @property
    def is_first_pass(self) -> bool:
        """Whether the update under way is the first that its rollout serves."""
        return self._step % self._micro_batches_of_rollout < self.args.gradient_accumulation_steps

    def begin_rollouts(self) -> None:
        """Called with every rollout: what a resumed run logs first is of its own updates."""
        if self._first_rollout_step is None:
            self._first_rollout_step = self._logged_step = self.state.global_step

    @property
    def is_first_rollout(self) -> bool:
        """Whether the update under way is the first of this process's life."""
        return self.state.global_step == self._first_rollout_step

    # Checkpoints -----------------------------------------------------------------------------------------------------

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        if not self.only_weights:
            super()._load_from_checkpoint(checkpoint, model)

    def _run_epoch(self, **kwargs: Any) -> None:
        """Nothing where a run that goes on had made its last update: transformers would make another one."""
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            self.control.should_training_stop = True
            return
        super()._run_epoch(**kwargs)

    def _prepare_for_training(self, max_steps: int, dataloader: Any, checkpoint: str | None) -> tuple[Any, Any]:
        if not self.only_weights:
            prepared = super()._prepare_for_training(max_steps, dataloader, checkpoint)
            if checkpoint is not None:
                apply_settings(self.optimizer, self.lr_scheduler, self._new_settings)
            return prepared
        prepared = super()._prepare_for_training(max_steps, dataloader, None)
        forward_schedule(self.lr_scheduler, self.state.global_step)
        return prepared

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The last that is made before a checkpoint's state replaces what the recipe says of the optimizer."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if optimizer is None:  # else DeepSpeed asks, which has no optimizer yet
            self._new_settings = settings_of_groups(self.optimizer)
        return scheduler

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Written under another name and renamed when complete (rl/checkpoint/folders.py). Raises UserError where it
        can't be.

        Skips TRL's own override, which adds a model card to the run folder.
        """
        run, main = Path(self.args.output_dir), self.accelerator.is_main_process
        name = f"{CHECKPOINT}{self.state.global_step}"
        with writing(run, self.state.global_step):
            if main:
                shutil.rmtree(run / SAVING, ignore_errors=True)
                (run / SAVING).mkdir()
            self.accelerator.wait_for_everyone()
            self._saving = True
            super(GRPOTrainer, self)._save_checkpoint(model, trial)
            self._saving = False
            for callback in self.stateful_callbacks:
                callback.save(run / SAVING / name)
            self.accelerator.wait_for_everyone()
            if main:
                RunFolder(run).copy_records(run / SAVING / name)
            files = self._looked_at(run / SAVING / name)
            if main:
                rotate(run, self.args.save_total_limit, publish(run, name, files))
            self.accelerator.wait_for_everyone()

    def _looked_at(self, folder: Path) -> Files:
        """What all processes have found of their shares of a checkpoint's files, once these are on the disk."""
        told = [shares(folder, self.accelerator.num_processes) if self.accelerator.is_main_process else None]
        own = looked_at(folder, broadcast_object_list(told)[0][self.accelerator.process_index])
        return {name: found for share in gather_object([own]) for name, found in share.items()}

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(self.args.output_dir) / SAVING) if self._saving else super()._get_output_dir(trial)

    def _send_telemetry(self) -> None:
        """Nothing: see uniar/telemetry.py, which a program may have imported too late."""

    # Logging ---------------------------------------------------------------------------------------------------------

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        before, started = sum(self._seconds.values()), time.perf_counter()
        loss = super().training_step(*args, **kwargs)
        elsewhere = sum(self._seconds.values()) - before
        self._seconds["update"] = self._seconds.get("update", 0.0) + time.perf_counter() - started - elsewhere
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        steps = self.state.global_step - self._logged_step
        if "loss" in logs and steps > 0:
            logs |= {f"seconds/{name}": total / steps for name, total in self._seconds.items()}
            logs |= {f"throughput/{name}": count / steps for name, count in self._made.items() if count}
            if images := self._made["images"]:
                logs["throughput/images_per_second"] = images / sum(self._seconds.values())
            logs["memory/peak_gb"] = peak_memory_gb()
            self._made = dict.fromkeys(self._made, 0)
            self._seconds.clear()
            self._logged_step = self.state.global_step
        if "grad_norm" in logs:
            if self._gradient_size is None:
                self._gradient_size = GradientSize(self.trained_parameters().values(), self.args, self.optimizer)
            logs |= self._gradient_size.metrics(logs["grad_norm"])
        super().log(logs, start_time)

    def count_made(self, turns: Iterable[Turn]) -> None:
        """Called with what this process has drawn and written in a round of a rollout; counts that of all. They all
        call it."""
        here = [0, 0, 0]
        for turn in turns:
            if isinstance(turn, Texts):
                here[2] += turn.elements
            else:
                here = [here[0] + 1, here[1] + turn.bits.shape[1], here[2]]
        counts = self.accelerator.reduce(torch.tensor(here, device=self.accelerator.device)).tolist()
        for name, count in zip(self._made, counts, strict=True):
            self._made[name] += count

    def record(self, metrics: Mapping[str, float], kinds: Mapping[str, Kind] | None = None) -> None:
        """For the next log: it has means over its updates, but for what `kinds` says is the largest or smallest."""
        for name, value in metrics.items():
            logged = self._metrics["train"][name]
            logged.append(float(value))
            if (extreme := EXTREMES.get((kinds or {}).get(name, "mean"))) is not None:
                logged[:] = [float(extreme(logged))]
