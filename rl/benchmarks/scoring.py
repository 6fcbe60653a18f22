"""Drawn images → scores, as an evaluation has them: from the files, so that scoring needs no model that draws."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from rewards import RewardSuite, RewardTable
from rl.benchmarks.folder import BenchmarkFolder
from rl.data.prompts import PromptRecord
from rl.distributed.sharing import fixed_batches, in_order, share_of, shares_at_main
from rl.evaluation.evaluate import Evaluation, require_free_names, samples_at_once, total_scores
from rl.policy.samples import DrawSettings, Sample
from rl.records.rows import PICTURE_SIZE, picture_of, sample_rows, sources_of
from rl.scoring.groups import compare_samples, comparing, reward_batch
from uniar.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator


def build_rewards(entries: Sequence[Mapping[str, Any]], records: Sequence[PromptRecord]) -> RewardSuite:
    """The rewards of a benchmark, not loaded yet. Raises UserError for one that cannot score these prompts, whatever
    the images, and for one that looks at more than images."""
    suite = require_free_names(RewardSuite.from_recipe(list(entries), key="the benchmark's rewards"))
    for reward in suite.rewards:
        if reward.wants_policy:
            raise UserError(f"reward {reward.name!r} looks at the model; a benchmark is scored on its images alone.")
    suite.check_tasks(record.task for record in records if record.task is not None)
    suite.check_columns([record.task for record in records], [record.metadata for record in records])
    suite.check_samples((record.where, record.prompt, record.task, record.metadata) for record in records)
    return suite


def score_images(
    folder: BenchmarkFolder,
    samples: Sequence[Sample],
    settings: DrawSettings,
    rewards: RewardSuite,
    accelerator: "Accelerator | None" = None,
) -> Evaluation:
    """The scores of all samples, whose images are there; those of a prompt stand together. Several processes share
    them; the rows, with a small picture each, are the main process's alone."""
    started = time.perf_counter()
    images_per_prompt = max(sample.index for sample in samples) + 1
    batches = fixed_batches(len(samples), samples_at_once(images_per_prompt, settings.decode_batch_size))
    tables: dict[int, RewardTable] = {}
    pictures: dict[int, bytes | None] = {}
    first = accelerator is None or accelerator.is_main_process
    rewards.load()
    with rewards.on_device():
        for batch in tqdm(share_of(batches, accelerator), desc="score", disable=not (first and sys.stderr.isatty())):
            images = [folder.load(samples[n]) for n in batch]
            tables[batch.start] = _scored(rewards, [samples[n] for n in batch], images)
            pictures |= {n: picture_of(image) for n, image in zip(batch, images, strict=True)}
    table = RewardTable.cat(in_order(tables, accelerator))
    totals = total_scores(rewards.terms(table.values), table.weights, table.failed)
    rows = None
    if kept := {n: one for share in shares_at_main(pictures, accelerator) for n, one in share.items()}:
        stored = [kept[n] for n in range(len(samples))]
        sources = sources_of(samples, PICTURE_SIZE)
        rows = sample_rows(samples, settings, table, totals.tolist(), stored, sources=sources)
    seconds = time.perf_counter() - started
    return Evaluation(rewards.names, table.values, totals, [], seconds, table.details, rows=rows)


@torch.no_grad()
def _scored(rewards: RewardSuite, samples: Sequence[Sample], images: Sequence[Any]) -> RewardTable:
    compared = comparing(rewards)
    table = rewards.score(reward_batch(samples, images), only=[name for name in rewards.names if name not in compared])
    return table.filled(compare_samples(rewards, samples, images), compared)
