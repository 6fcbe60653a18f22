"""Evaluation on held-out prompts: draw, decode, score, always from the same noise, so that evaluations are paired."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor

from rewards import RewardBatch, RewardSuite, RewardTable
from rl.pipeline import decode_and_score
from rl.prompts import PromptRecord
from rl.rollout import DrawSettings, Sample, draw

if TYPE_CHECKING:
    from accelerate import Accelerator

    from uniar.modeling_decoder import UniARVisualDecoder
    from uniar.modeling_uniar import UniARForConditionalGeneration

SAMPLES_AT_ONCE = 32
"""Samples drawn and decoded before the next are begun, to bound the images held in memory."""


def total_scores(values: Tensor, weights: Tensor) -> Tensor:
    """(B, R) terms and (R,) or (B, R) weights → (B,) weighted sums; NaN for a sample that no reward applies to."""
    applies = ~values.isnan()
    totals = (torch.where(applies, values, 0.0) * weights).sum(1)
    return totals.masked_fill(~applies.any(1), math.nan)


@dataclass(frozen=True)
class Evaluation:
    """Scores of N held-out samples under R rewards, in the order of the prompts."""

    names: tuple[str, ...]
    values: Tensor
    """(N, R) float64 as the rewards gave them, NaN where a reward does not apply"""
    totals: Tensor
    """(N,) weighted sum of the rewards that apply, clipped and normalised as their entries say"""
    shown: list[tuple[PromptRecord, Image.Image, float]]
    """first sample of the first prompts, for the grid: record, image, total; on the main process only"""
    seconds: float
    details: dict[str, list[Mapping[str, Any] | None]] = field(default_factory=dict)
    """what rewards say about each of the N samples besides its score; only of rewards that say something"""

    notes: list[str] = field(default_factory=list)
    """the details of what is shown, as a line of text each"""

    @property
    def mean(self) -> float:
        """Mean total over the samples that have one."""
        return self.totals.nanmean().item()

    @property
    def standard_error(self) -> float:
        return standard_error(self.totals)

    def metrics(self) -> dict[str, float]:
        """For the log: `eval_reward`, its standard error, and each reward's mean."""
        means = {f"eval_{name}": self.values[:, i].nanmean().item() for i, name in enumerate(self.names)}
        own = {"eval_reward": self.mean, "eval_reward_se": self.standard_error, "eval_seconds": self.seconds}
        return {**own, **means}


def standard_error(values: Tensor) -> float:
    """Of the mean of the values that are there; NaN for fewer than two."""
    there = values[~values.isnan()]
    return (there.std() / len(there) ** 0.5).item() if len(there) > 1 else math.nan


def paired_gain(before: Tensor, after: Tensor) -> tuple[float, float]:
    """Mean gain in total reward and its standard error, over (N,) totals that were drawn from the same noise."""
    gain = after - before
    return gain.nanmean().item(), standard_error(gain)


class Evaluator:
    """Holds what an evaluation needs besides the policy."""

    def __init__(
        self,
        records: Sequence[PromptRecord],
        processor: Any,
        decoder: "UniARVisualDecoder",
        rewards: RewardSuite,
        settings: DrawSettings,
        *,
        samples_per_prompt: int = 1,
        grid_prompts: int = 8,
    ) -> None:
        self.samples = [Sample(record, index) for record in records for index in range(samples_per_prompt)]
        self.shown = min(grid_prompts, len(records)) * samples_per_prompt
        self.samples_per_prompt = samples_per_prompt
        self.processor, self.decoder, self.rewards, self.settings = processor, decoder, rewards, settings

    def run(self, model: "UniARForConditionalGeneration", accelerator: "Accelerator | None" = None) -> Evaluation:
        """Evaluates `model`. Under several processes each takes a share, and all return the same scores."""
        started = time.perf_counter()
        rank = 0 if accelerator is None else accelerator.process_index
        world = 1 if accelerator is None else accelerator.num_processes
        # Rank r takes samples r, r + world, …: shares differ by one at most, and the grid's first samples spread too.
        mine = list(range(rank, len(self.samples), world))
        tables, images = [], {}
        for start in range(0, len(mine), SAMPLES_AT_ONCE):
            numbers = mine[start : start + SAMPLES_AT_ONCE]
            samples = [self.samples[number] for number in numbers]
            bits = draw(model, self.processor, samples, self.settings).rollout.bits
            drawn, table = decode_and_score(
                self.decoder, bits, samples, self.settings, self.rewards, nullcontext(model), self.processor
            )
            tables.append(table)
            images.update({n: image for n, image in zip(numbers, drawn, strict=True) if n < self.shown})
        table = RewardTable.cat(tables) if tables else self.rewards.score(RewardBatch([], []))
        values, details = torch.cat([table.values, table.weights], 1), table.details
        if world > 1:
            values, images = _gather(values, images, len(self.samples), accelerator)
            details = _gather_details(details, len(self.samples), self.rewards.names)
        values, weights = values.chunk(2, 1)
        totals = total_scores(self.rewards.terms(values), weights)
        numbers = [n for n in sorted(images) if n % self.samples_per_prompt == 0]
        shown = [(self.samples[n].record, images[n], totals[n].item()) for n in numbers]
        notes = [_note({name: rows[n] for name, rows in details.items()}) for n in numbers]
        return Evaluation(self.rewards.names, values, totals, shown, time.perf_counter() - started, details, notes)


def _note(details: Mapping[str, Mapping[str, Any] | None]) -> str:
    """What rewards say about one sample: their `why`, else all they say."""
    said = []
    for name, entries in details.items():
        if entries:
            text = entries["why"] if "why" in entries else ", ".join(f"{key} {value}" for key, value in entries.items())
            said.append(f"{name}: {text}")
    return "; ".join(said)


def _gather(
    values: Tensor, images: dict[int, Image.Image], count: int, accelerator: "Accelerator"
) -> tuple[Tensor, dict[int, Image.Image]]:
    """Every rank's scores, and the images to show, back in the order of the samples on all ranks."""
    world, device = accelerator.num_processes, accelerator.device
    share = math.ceil(count / world)
    padded = torch.full((share, values.shape[1]), math.nan, dtype=values.dtype)
    padded[: len(values)] = values
    scores = accelerator.gather(padded.to(device)).cpu().view(world, share, -1)
    ordered = scores.transpose(0, 1).reshape(world * share, -1)[:count]

    pixels = [torch.from_numpy(np.array(image.convert("RGB"))) for image in images.values()]
    most, shape = _largest(pixels, accelerator)
    block = torch.zeros(most, *shape, 3, dtype=torch.uint8)
    numbers = torch.full((most,), -1, dtype=torch.long)
    for place, (number, image) in enumerate(zip(images, pixels, strict=True)):
        block[place], numbers[place] = image, number
    blocks, numbers = accelerator.gather(block.to(device)).cpu(), accelerator.gather(numbers.to(device)).cpu()
    together = {n: Image.fromarray(b.numpy()) for n, b in zip(numbers.tolist(), blocks, strict=True) if n >= 0}
    return ordered, together


def _gather_details(
    details: dict[str, list[Mapping[str, Any] | None]], count: int, names: Sequence[str]
) -> dict[str, list[Mapping[str, Any] | None]]:
    """Every rank's details, back in the order of the samples on all ranks."""
    shares = gather_object([details])
    ordered = {}
    for name in names:
        if any(name in share for share in shares):
            # Rank r has samples r, r + world, …
            ordered[name] = [None] * count
            for rank, share in enumerate(shares):
                if name in share:
                    ordered[name][rank :: len(shares)] = share[name]
    return ordered


def _largest(pixels: Sequence[Tensor], accelerator: "Accelerator") -> tuple[int, tuple[int, int]]:
    """Most images any rank has, and their height and width: collectives need equal shapes, and a rank may have none."""
    height, width = pixels[0].shape[:2] if pixels else (0, 0)
    sizes = accelerator.gather(torch.tensor([[len(pixels), height, width]], device=accelerator.device))
    most, height, width = sizes.amax(0).tolist()
    return most, (height, width)
