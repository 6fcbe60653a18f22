"""What a recipe can say of a run that goes wrong: what is watched, and what happens then."""

# ruff: noqa: RUF009 (`setting` wraps dataclasses.field, which the rule would let pass)

import dataclasses
from typing import Literal

from uniar.reading.settings import setting

WatchAction = Literal["stop", "skip", "warn"]


@dataclasses.dataclass(frozen=True)
class GuardsSection:
    """What a gamed reward does to pictures and to other scores: limits that evaluations are held against, each measured
    from the run's own first evaluation. Past one the run says so in a sentence, on the console, in metrics.jsonl and on
    its page ([reward hacking](reward-hacking.md))."""

    action: Literal["stop", "warn"] = setting(
        "What to do past a limit. warn: go on. stop: end training after that evaluation, save, and export final/.",
        "warn",
    )
    untrained: float | None = setting(
        "How many standard errors of the paired difference a reward of evaluations that is not trained on may fall "
        "below its start while the training reward has risen; null: not watched.",
        3.0,
        gt=0,
    )
    diversity: float | None = setting(
        "Smallest share of the start's diversity, the mean distance of two pictures of one prompt (of two prompts, "
        "where evaluations draw one sample each); null: not watched.",
        0.8,
        gt=0,
        le=1,
    )
    sharpness: float | None = setting(
        "By which factor the mean sharpness may be above or below the start's; null: not watched.", 2.0, gt=1
    )
    near_duplicates: float | None = setting(
        "By how much the share of pictures that nearly repeat one of another prompt may be above the start's, as a "
        "share of all pictures; null: not watched.",
        0.1,
        gt=0,
        lt=1,
    )


@dataclasses.dataclass(frozen=True)
class WatchSection:
    """What interrupts or ends a run that goes wrong. stop: before the update is made; skip: that update is not made;
    warn: it is. The batch is kept in the run's bad_batches/, for each setting the first one. A run that skipped all its
    updates ends with an error and exports nothing."""

    nonfinite: WatchAction = setting(
        "A loss or a gradient that is NaN or infinite. DeepSpeed makes no such update even where this is warn.", "stop"
    )
    step1: WatchAction = setting(
        "A first update whose policy is not the one that drew, past algorithm.step1_tolerance.", "stop"
    )
    no_variance_steps: int | None = setting(
        "Updates in a row in which the rewards of no group differ; null: not watched.", None, ge=1
    )
    kl_limit: float | None = setting(
        "Largest KL to the reference, nats per bit (per token where no episode draws); null: not watched. Where "
        "algorithm.reference sets a guidance scale or temperature, KL begins above 0, because the reference draws "
        "otherwise than rollouts from the start: set a limit above what the first update shows.",
        None,
        gt=0,
    )
    entropy_limit: float | None = setting(
        "Smallest entropy, nats per bit (per token where no episode draws); null: not watched.", None, gt=0
    )
    action: WatchAction = setting("What to do past one of the three limits above.", "stop")
    skip_limit: int = setting("Skipped updates in a row, for whatever reason, after which the run stops.", 10, ge=1)
    guards: GuardsSection | None = setting(
        "Guards against reward hacking, which evaluations are held against; `{}`: with the limits below, null: none.",
        None,
    )
