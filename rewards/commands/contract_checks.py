"""Does a reward keep the contract? Each check says what it found, in words for its author."""

import asyncio
import copy
import inspect
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from rewards.attempt import Outcome, score_samples
from rewards.contract.base import Reward, RewardBatch
from rewards.contract.function import FunctionReward
from rewards.contract.registry import resolve
from rewards.contract.spec import RewardSpec
from uniar.errors import UserError

_SLOW_INIT_SECONDS = 2.0
_COLORS = ("red", "yellow", "green", "blue")


@dataclass(frozen=True)
class Finding:
    """What a check found: `wrong` breaks the contract, `advice` does not; neither: all is well."""

    check: str
    said: str = ""
    wrong: bool = False
    advice: bool = False


def made_up_samples(metadata: Mapping[str, Any] | None = None) -> RewardBatch:
    """Four different pictures of different sizes with prompts and bits; tasks, metadata, pictures to edit and what was
    written are there for some alone, as in a mix of prompt files, unless `metadata` is given for all."""
    random = np.random.default_rng(0)
    images = []
    for number, color in enumerate(_COLORS):
        image = Image.new("RGB", (64, 48 + 16 * number), color)
        noise = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        image.paste(noise, (8 * number, 8))
        images.append(image)
    own = [{"text": "OPEN", "color": "red", "count": 2, "answer": "2"}, {}, {"color": "green", "answer": "green"}, {}]
    return RewardBatch(
        prompts=[f'a {color} sign that says "OPEN"' for color in _COLORS],
        images=images,
        tasks=["text", None, "color", None],
        metadata=own if metadata is None else [dict(metadata) for _ in _COLORS],
        bits=torch.from_numpy(random.integers(0, 2, (4, 4, 1, 4, 8), dtype=np.uint8)),
        source_images=[[images[0].rotate(180)], [images[1].copy()], [], []],
        texts=[["a red sign", "2"], [], ["blue"], []],
    )


def check_reward(use: str, parameters: Mapping[str, Any], samples: RewardBatch) -> Iterator[Finding]:
    """Checks the reward that `use` names, from its signature to its scores; ends early where going on has no use."""
    try:
        target = resolve(use)
        yield from _check_signature(target)
        started = time.perf_counter()
        reward = RewardSpec(use, params=parameters).build()
        seconds = time.perf_counter() - started
    except UserError as error:
        yield Finding("it can be built", str(error), wrong=True)
        return
    slow = seconds > _SLOW_INIT_SECONDS
    said = f"__init__ took {seconds:.1f} s; what takes long belongs in load" if slow else ""
    yield Finding("it can be built", said, advice=slow)
    try:
        reward.to("cpu")
        reward.load()
        reward.load()
        reward.to("cpu")
    except (Exception, SystemExit) as error:
        yield Finding("it loads, twice, and moves before and after", f"{type(error).__name__}: {error}", wrong=True)
        return
    yield Finding("it loads, twice, and moves before and after")
    if isinstance(reward, FunctionReward):
        try:
            reward.check_columns(samples.metadata)
        except UserError as error:
            said = f"{str(error).rstrip('.')}; give it samples of its own by --samples or --metadata"
            yield Finding("it applies", said, advice=True)
            return
    with asyncio.Runner() as loop:
        try:
            yield from _Scoring(reward, samples, loop).findings()
        finally:
            reward.close()


def _check_signature(target: Any) -> Iterator[Finding]:
    doc = inspect.getdoc(target) if target.__doc__ else None
    yield Finding("it says what it measures", "" if doc else "it has no docstring", advice=not doc)
    if not inspect.isclass(target):
        return
    parameters = [
        parameter
        for parameter in inspect.signature(target).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    bare = [parameter.name for parameter in parameters if parameter.annotation is parameter.empty]
    said = f"{', '.join(bare)} without a type: a recipe may set anything there" if bare else ""
    yield Finding("its parameters have types", said, advice=bool(bare))
    silent = [parameter.name for parameter in parameters if parameter.name not in (doc or "")]
    said = f"the docstring does not mention {', '.join(silent)}" if silent else ""
    yield Finding("its parameters are explained", said, advice=bool(silent))


class _Scoring:
    """The checks of `score`, which share what it gave for the samples at first."""

    def __init__(self, reward: Reward, samples: RewardBatch, loop: asyncio.Runner):
        self.reward, self._loop = reward, loop
        self.samples = _copied(samples)  # what one reward does to them must not reach the next

    def findings(self) -> Iterator[Finding]:
        before = _fingerprint(self.samples)
        started = time.perf_counter()
        first = self._scored(self.samples)
        seconds = (time.perf_counter() - started) / len(self.samples)
        if first.faults:
            texts = dict.fromkeys(
                fault.text
                if fault.index is None
                else f"{fault.text}, on sample {fault.index} "
                f"(prompt {self.samples.prompts[fault.index]!r}, metadata {dict(self.samples.metadata[fault.index])!r})"
                for fault in first.faults.values()
            )
            more = f"; and {len(texts) - 2} more" if len(texts) > 2 else ""
            yield Finding("it scores a batch", "; ".join(list(texts)[:2]) + more, wrong=True)
            return
        yield Finding("it scores a batch", f"{_listed(first.scores)}, {seconds * 1000:.3g} ms per sample")
        none = all(math.isnan(score) for score in first.scores)
        if none:
            said = "it applies to none of these samples; give it some of its own by --samples or --metadata"
            yield Finding("it applies", said, advice=True)
        same = not none and len(set(first.scores)) == 1
        yield Finding("it tells pictures apart", "all have the same score" if same else "", advice=same)
        changed = [name for name, value in _fingerprint(self.samples).items() if value != before[name]]
        said = f"score changed the {' and '.join(changed)} it was given, which others read too" if changed else ""
        yield Finding("it leaves the samples as they are", said, wrong=bool(changed))
        again = self._compared("the same samples have the same scores", self.samples, first.scores, "a second time")
        yield again
        if self.reward.pointwise and not again.wrong:  # where they never agree, the rest would say the same
            yield from self._pointwise(first.scores)

    def _pointwise(self, scores: Sequence[float]) -> Iterator[Finding]:
        """What `pointwise` promises: a score does not depend on the other samples."""
        rows = list(reversed(range(len(self.samples))))
        check = "scores are in the order of the samples"
        yield self._compared(check, self.samples.select(rows), [scores[row] for row in rows], "in reverse")
        hint = "by itself (a reward that compares samples says pointwise = False)"
        for row in range(len(self.samples)):
            alone = self._compared("a sample scores the same alone", self.samples.select([row]), [scores[row]], hint)
            if alone.wrong or row == len(self.samples) - 1:
                yield alone
                return

    def _compared(self, check: str, batch: RewardBatch, expected: Sequence[float], when: str) -> Finding:
        again = self._scored(batch)
        if again.faults:
            return Finding(check, f"{next(iter(again.faults.values())).text}, {when}", wrong=True)
        # As near as batches of another size come in half precision.
        near = np.allclose(again.scores, expected, rtol=1e-2, atol=1e-3, equal_nan=True)
        if near:
            return Finding(check)
        return Finding(check, f"{_listed(expected)} at first, {_listed(again.scores)} {when}", wrong=True)

    def _scored(self, batch: RewardBatch) -> Outcome:
        return score_samples(self.reward, batch, wait=self._loop.run, retries=0, first_fault_only=False)


def _copied(batch: RewardBatch) -> RewardBatch:
    return RewardBatch(
        prompts=list(batch.prompts),
        images=[image.copy() for image in batch.images],
        tasks=list(batch.tasks),
        metadata=[copy.deepcopy(dict(row)) for row in batch.metadata],
        bits=None if batch.bits is None else batch.bits.clone(),
        source_images=[[image.copy() for image in row] for row in batch.source_images],
        texts=[list(row) for row in batch.texts],
    )


def _fingerprint(batch: RewardBatch) -> dict[str, Any]:
    return {
        "prompts": list(batch.prompts),
        "images": [(image.mode, image.size, image.tobytes()) for image in batch.images],
        "source_images": [(image.mode, image.size, image.tobytes()) for row in batch.source_images for image in row],
        "texts": [list(row) for row in batch.texts],
        "tasks": list(batch.tasks),
        "metadata": [repr(sorted(row.items(), key=str)) for row in batch.metadata],
        "bits": None if batch.bits is None else batch.bits.tolist(),
    }


def _listed(scores: Sequence[float]) -> str:
    return ", ".join("none" if math.isnan(score) else f"{score:.6g}" for score in scores)
