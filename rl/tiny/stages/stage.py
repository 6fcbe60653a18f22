"""What the training stages share: pictures as tensors, and a loop that logs, saves and resumes.

A step's data and noise depend on (seed, stage, step) alone, so an interrupted stage goes on as if nothing had happened.
"""

import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from rl.tiny.world import Scene, render
from uniar.placement import multiplies_bfloat16
from uniar.seeds import seed_of

STATE_FOLDER = ".training"
SAVE_SECONDS = 120.0


def pictures(scenes: Sequence[Scene]) -> Tensor:
    """Scenes → (B, 3, 64, 64) float32 in -1 to 1."""
    stacked = np.stack([np.asarray(render(scene)) for scene in scenes])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def randomness(*what: object) -> tuple[random.Random, torch.Generator]:
    """Python's and torch's generator for one purpose, such as (seed, stage, step)."""
    seed = seed_of(*what)
    return random.Random(seed), torch.Generator().manual_seed(seed)


class Stage:
    """AdamW with warm-up and cosine decay over `model`'s trainable parameters, and a moving average of its weights.

    Iterating gives the numbers of the steps still to do; the caller computes a loss for each and passes it to `update`.
    Progress is kept in `<folder>/.training/<name>.pt`, the log in `<folder>/training.jsonl`.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        model: nn.Module,
        *,
        steps: int,
        learning_rate: float,
        seed: int,
        warmup: int = 100,
        weight_decay: float = 0.01,
        average: float = 0.998,
        log_every: int = 50,
    ) -> None:
        self.name, self.folder, self.model, self.steps, self.seed = name, folder, model, steps, seed
        self.log_every = log_every
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0))) + 0.01),
        )
        self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(average), use_buffers=False)
        self.step = 0
        self.seconds = 0.0
        self._losses: dict[str, list[float]] = {}
        self._file = folder / STATE_FOLDER / f"{name}.pt"
        self._file.parent.mkdir(parents=True, exist_ok=True)
        if self._file.is_file():
            self._load()

    def __iter__(self) -> Iterator[int]:
        saved = started = time.monotonic()
        before = self.seconds
        with tqdm(total=self.steps, initial=self.step, desc=self.name, mininterval=2.0) as progress:
            while self.step < self.steps:
                yield self.step
                self.step += 1
                now = time.monotonic()
                self.seconds = before + now - started
                progress.update()
                if self.step % self.log_every == 0:
                    means = {name: sum(values) / len(values) for name, values in self._losses.items()}
                    self._losses = {}
                    progress.set_postfix({name: f"{value:.4g}" for name, value in means.items()})
                    self.log(means)
                if now - saved > SAVE_SECONDS or self.step == self.steps:
                    self._save()
                    saved = now

    def update(self, loss: Tensor, **parts: Tensor) -> None:
        """One optimizer step. `parts` are logged beside the loss. Raises FloatingPointError for a loss that is none."""
        if not loss.isfinite():
            raise FloatingPointError(f"stage {self.name}: the loss of step {self.step} is {loss.item()}.")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.averaged.update_parameters(self.model)
        for name, value in {"loss": loss, **parts}.items():
            self._losses.setdefault(name, []).append(float(value.detach()))

    def log(self, numbers: dict[str, float]) -> None:
        """Appends a line with the stage, the step, the seconds trained so far and `numbers` to training.jsonl."""
        line = {"stage": self.name, "step": self.step, "seconds": round(self.seconds, 1)}
        with (self.folder / "training.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | {name: round(value, 6) for name, value in numbers.items()}) + "\n")

    def finish(self) -> nn.Module:
        """The model with its averaged weights."""
        self.model.load_state_dict(self.averaged.module.state_dict())
        return self.model.eval()

    def _save(self) -> None:
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": {"last_epoch": self.schedule.last_epoch},
        }
        unfinished = self._file.with_suffix(".unfinished")
        torch.save(state, unfinished)
        unfinished.replace(self._file)

    def _load(self) -> None:
        state = torch.load(self._file, weights_only=True)
        self.step, self.seconds = state["step"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.last_epoch = state["schedule"]["last_epoch"]


def flip(bits: Tensor, most: float, noise: torch.Generator) -> Tensor:
    """Bits of which each sample has a share flipped that is uniform between none and `most`."""
    amount = most * torch.rand(len(bits), 1, 1, 1, 1, generator=noise)
    return bits ^ (torch.rand(bits.shape, generator=noise) < amount).to(bits.dtype)


def mixed_precision(fast: bool) -> torch.autocast:
    """bfloat16 matrix products over float32 weights, where the CPU has kernels for them: up to several times faster."""
    return torch.autocast("cpu", torch.bfloat16, enabled=fast and multiplies_bfloat16(torch.device("cpu")))
