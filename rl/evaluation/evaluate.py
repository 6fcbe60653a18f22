"""Evaluation on held-out prompts: draw, decode, score, always from the same noise, so that evaluations are paired."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from rewards import RewardSuite, RewardTable
from rl.data.prompts import PromptRecord
from rl.distributed.sharing import even_batches, from_main, in_order, share_of, shares_at_main
from rl.evaluation.look import Look, look_at
from rl.policy.completion import Completion
from rl.policy.play import play
from rl.policy.samples import DrawSettings, Sample
from rl.records.rows import PICTURE_SIZE, picture_of, said_of, sample_rows, sources_of
from rl.scoring.pipeline import chunk_size
from rl.scoring.scorer import Scorer, Scores
from uniar.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from rl.config.sections import Recipe
    from uniar.modeling_uniar import UniARForConditionalGeneration


def total_scores(values: Tensor, weights: Tensor, failed: Tensor | None = None) -> Tensor:
    """(B, R) terms and (R,) or (B, R) weights → (B,) weighted sums of the rewards that apply.

    NaN for a sample that no reward applies to, and for one that a reward with a weight failed on (`failed`, (B, R)
    bool): without that reward its total would not be comparable, and failing might pay.
    """
    applies = ~values.isnan()
    totals = (torch.where(applies, values, 0.0) * weights).sum(1)
    missing = ~applies.any(1)
    if failed is not None:
        missing |= (failed & (weights != 0)).any(1)
    return totals.masked_fill(missing, math.nan)


def samples_at_once(samples_per_prompt: int, decode_batch_size: int) -> int:
    """Samples drawn, decoded and scored before the next are begun: whole prompts, and at least a chunk of the decoder.

    Bounds the images held in memory. Not more than that, so that several processes find enough to share.
    """
    return samples_per_prompt * -(-chunk_size(decode_batch_size) // samples_per_prompt)


class Shown(NamedTuple):
    """A sample of the grid."""

    record: PromptRecord
    image: Image.Image | None
    """as the decoder left it; None where nothing was drawn"""
    total: float
    texts: tuple[str, ...] = ()
    """what it wrote"""


@dataclass(frozen=True)
class Evaluation:
    """Scores of N held-out samples under R rewards, in the order of the prompts."""

    names: tuple[str, ...]
    values: Tensor
    """(N, R) float64 as the rewards gave them, NaN where a reward does not apply"""
    totals: Tensor
    """(N,) weighted sum of the rewards that apply, clipped and normalised as their entries say; NaN where one failed"""
    shown: list["Shown"]
    """first sample of the first prompts, for the grid; none but in the main process"""
    seconds: float
    details: dict[str, list[Mapping[str, Any] | None]] = field(default_factory=dict)
    """what rewards say about each of the N samples besides its score; only of rewards that say something"""

    notes: list[str] = field(default_factory=list)
    """the details of what is shown, as a line of text each"""
    rows: pa.Table | None = None
    """all N samples, as rl/records/rows.py has them; None but in the main process"""
    sets: Mapping[str, "Evaluation"] = field(default_factory=dict)
    """of named held-out sets each by itself, where it is of several"""
    look: Look | None = None
    """what its pictures look like; None where none was kept, and where it is of several sets"""
    kinds: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """of a named set: task/NAME and tag/NAME → the samples of that task or skill, each where there are several"""

    @property
    def mean(self) -> float:
        """Mean total over the samples that have one."""
        return self.totals.nanmean().item()

    @property
    def standard_error(self) -> float:
        return standard_error(self.totals)

    def metrics(self) -> dict[str, float]:
        """For the log: `eval_reward`, its standard error, samples without a total, and each reward's mean; what
        pictures look like as `eval_look/NAME`; the same of each named set as `eval_SET/reward` and so on, and its mean
        total by task and tag."""
        named = {
            f"eval_{name}/{key.removeprefix('eval_')}": value
            for name, one in self.sets.items()
            for key, value in one.metrics().items()
        }
        kinds = {f"eval_{kind}": self.totals[list(places)].nanmean().item() for kind, places in self.kinds.items()}
        means = {f"eval_{name}": self.values[:, i].nanmean().item() for i, name in enumerate(self.names)}
        return {
            "eval_reward": self.mean,
            "eval_reward_se": self.standard_error,
            "eval_excluded_samples": float(self.totals.isnan().sum()),
            "eval_seconds": self.seconds,
            **means,
            **({} if self.look is None else {f"eval_look/{key}": value for key, value in self.look.metrics().items()}),
            **kinds,
            **named,
        }


OWN_METRICS = ("reward", "reward_se", "excluded_samples", "seconds")
"""What an evaluation logs besides each reward's mean, all with the prefix eval_."""
OWN_COLUMNS = ("total", "understanding", "held_out")
"""What its file, evaluations/step-N.json, has besides each reward's scores."""


def require_free_names(rewards: RewardSuite) -> RewardSuite:
    """Raises UserError for a reward of evaluations whose scores would stand under the name of something else."""
    for name in rewards.names:
        if name in (*OWN_METRICS, *OWN_COLUMNS):
            raise UserError(
                f"a reward of evaluations is called {name!r}, which they use themselves; give it another name, such as "
                f"name: my_{name}."
            )
    return rewards


def standard_error(values: Tensor) -> float:
    """Of the mean of the values that are there; NaN for fewer than two."""
    there = values[~values.isnan()]
    return (there.std() / len(there) ** 0.5).item() if len(there) > 1 else math.nan


def paired_gain(before: Tensor, after: Tensor) -> tuple[float, float]:
    """Mean gain in total reward and its standard error, over (N,) totals that were drawn from the same noise."""
    gain = after - before
    return gain.nanmean().item(), standard_error(gain)


def held_out_otherwise(recipe: "Recipe") -> str | None:
    """In what the held-out score is set otherwise than the training one, so that the two are not to be compared; None
    where they are alike, and where training scores nothing."""
    if recipe.distill is not None:
        return None
    if recipe.evaluate.sets:
        return f"sets {', '.join(recipe.evaluate.sets)}"
    trained, held_out = DrawSettings.for_training(recipe), DrawSettings.for_evaluation(recipe)
    differences = ["other rewards"] if recipe.eval_rewards and recipe.eval_rewards != recipe.rewards else []
    kinds = trained.episodes.turns([None, *trained.episodes.names])
    of_pictures = (
        ("temperature", "temperature"),
        ("guidance_scale", "guidance"),
        ("num_inference_steps", "decoding steps"),
    )
    of_texts = (("text_temperature", "temperature of texts"),)
    for name, label in (*(of_pictures if "picture" in kinds else ()), *(of_texts if "text" in kinds else ())):
        if getattr(trained, name) != getattr(held_out, name):
            differences.append(f"{label} {getattr(held_out, name) or 'off'}")
    return ", ".join(differences) or None


class Kept(NamedTuple):
    """What is left of a sample."""

    made: Completion
    """without its drawing"""
    stored: bytes | None
    """for its row"""
    drawn: Image.Image | None
    """of one that is shown, as the decoder left it"""


Begun = tuple[range, Sequence[Completion], Scores]


class Evaluator:
    """Holds what an evaluation needs besides the policy."""

    def __init__(
        self,
        records: Sequence[PromptRecord],
        processor: Any,
        scorer: Scorer,
        settings: DrawSettings,
        *,
        samples_per_prompt: int = 1,
        grid_prompts: int = 8,
        picture_size: int | None = PICTURE_SIZE,
        name: str | None = None,
    ) -> None:
        """picture_size: longest side of the pictures that are kept; None: as they are, 0: none is. name: of a held-out
        set."""
        self.name = name
        self.samples = [Sample(record, index) for record in records for index in range(samples_per_prompt)]
        self.shown = range(0, min(grid_prompts, len(records)) * samples_per_prompt, samples_per_prompt)
        size = samples_at_once(samples_per_prompt, settings.decode_batch_size)
        self.batches = even_batches(len(self.samples), size, samples_per_prompt)
        self.processor, self.scorer, self.picture_size = processor, scorer, picture_size
        self.settings = replace(settings, decoder=scorer.sizes)

    def run(self, model: "UniARForConditionalGeneration", accelerator: "Accelerator | None" = None) -> Evaluation:
        """Evaluates `model`. Several processes share the batches; all return the same scores, however many they are,
        and the main process the pictures too."""
        started = time.perf_counter()
        tables: dict[int, RewardTable] = {}
        own: dict[int, Kept] = {}
        begun: Begun | None = None
        for numbers in share_of(self.batches, accelerator):
            samples = [self.samples[number] for number in numbers]
            played = play(model, self.processor, samples, self.settings, keep_turns=False)
            made = [one.completion for one in played]
            # Another process has scored the batch before meanwhile.
            self._finish(begun, tables, own)
            keep = [place for place, n in enumerate(numbers) if self.picture_size != 0 or n in self.shown]
            begun = numbers, made, self.scorer.begin(made, samples, policy=nullcontext(model), keep=keep)
        self._finish(begun, tables, own)
        table = RewardTable.cat(in_order(tables, accelerator))
        totals = total_scores(self.scorer.rewards.terms(table.values), table.weights, table.failed)
        rows, shown, notes = None, [], []
        if kept := {n: one for share in shares_at_main(own, accelerator) for n, one in share.items()}:
            all_kept = [kept[n] for n in range(len(self.samples))]
            stored, made = [one.stored for one in all_kept], [one.made for one in all_kept]
            scores = table, totals.tolist()
            rows = sample_rows(
                self.samples, self.settings, *scores, stored, made, sources=self._sources, held_out_set=self.name
            )
            shown = [Shown(self.samples[n].record, kept[n].drawn, totals[n].item(), made[n].texts) for n in self.shown]
            notes = [said_of(rows["details"][n].as_py()) for n in self.shown]
        look = from_main(None if rows is None else look_at(rows), accelerator)
        seconds = time.perf_counter() - started
        names, kinds = self.scorer.rewards.names, {} if self.name is None else _kinds(self.samples)
        return Evaluation(
            names, table.values, totals, shown, seconds, table.details, notes, rows, look=look, kinds=kinds
        )

    @cached_property
    def _sources(self) -> list[bytes | None]:
        return sources_of(self.samples, self.picture_size)

    def _finish(self, begun: Begun | None, tables: dict[int, RewardTable], kept: dict[int, Kept]) -> None:
        if begun is None:
            return
        numbers, completions, scores = begun
        drawn, tables[numbers.start] = scores()
        for n, completion, image in zip(numbers, completions, drawn, strict=True):
            made, stored = replace(completion, drawing=None), picture_of(image, self.picture_size)
            kept[n] = Kept(made, stored, image if n in self.shown else None)


def _kinds(samples: Sequence[Sample]) -> dict[str, list[int]]:
    found: dict[str, dict[str, list[int]]] = {"task": {}, "tag": {}}
    for place, sample in enumerate(samples):
        for key, name in (("task", sample.record.task), ("tag", sample.record.tag)):
            if name is not None:
                found[key].setdefault(name, []).append(place)
    return {f"{key}/{name}": places for key, named in found.items() if len(named) > 1 for name, places in named.items()}
