"""What a benchmark would draw and score, from the command line and the benchmark's own settings; and what it lacks."""

import argparse
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards import RewardSpec, RewardSuite
from rewards.contract.needs import needs_of
from rewards.contract.registry import resolve
from rewards.judge.questions import KEY as QUESTIONS
from rl.benchmarks.catalog import BENCHMARKS, Benchmark
from rl.benchmarks.folder import BenchmarkFolder
from rl.benchmarks.official import WRITERS, check_official
from rl.benchmarks.published import read_benchmark
from rl.benchmarks.scoring import build_rewards
from rl.data.prompts import PromptRecord
from rl.policy.samples import DrawSettings, Sample
from uniar.errors import UserError
from uniar.reading.yaml_files import parse_yaml

_LOWEST = {"temperature": 0.0, "cfg": 0.0, "decoder_guidance": 0.0, "upsampling_ratio": 1.0}


@dataclass(frozen=True)
class BenchmarkPlan:
    """Prompts, settings and rewards of one call."""

    name: str
    records: Sequence[PromptRecord]
    settings: DrawSettings
    images: int
    rewards: RewardSuite
    output: Path

    @property
    def benchmark(self) -> Benchmark:
        return BENCHMARKS[self.name]

    @property
    def samples(self) -> list[Sample]:
        """Prompt by prompt."""
        return [Sample(record, index) for record in self.records for index in range(self.images)]

    def folder(self, path: Path) -> BenchmarkFolder:
        return BenchmarkFolder(path, self.records)


def planned(arguments: argparse.Namespace) -> BenchmarkPlan:
    """Raises UserError for prompts, settings or rewards that cannot be used."""
    settings, images = settings_of(arguments)
    records = read_prompts(arguments)
    rewards = build_rewards(reward_entries(arguments, records), records)
    plan = BenchmarkPlan(arguments.name, records, settings, images, rewards, output_of(arguments))
    check_official(plan.name, plan.folder(plan.output), images)
    return plan


def output_of(arguments: argparse.Namespace) -> Path:
    return arguments.output or Path("runs") / f"benchmark-{arguments.name}"


def read_prompts(arguments: argparse.Namespace) -> list[PromptRecord]:
    """Raises UserError where they are not named or cannot be read."""
    benchmark = BENCHMARKS[arguments.name]
    source = arguments.prompts or (benchmark.prompts if benchmark.own_prompts else None)
    if source is None:
        raise UserError(f"{arguments.name} needs its prompts; give with --prompts {benchmark.prompts}.")
    if arguments.limit is not None and arguments.limit < 1:
        raise UserError(f"--limit is {arguments.limit}; at least 1 is needed.")
    return read_benchmark(arguments.name, source, arguments.image_root, arguments.limit)


def settings_of(arguments: argparse.Namespace) -> tuple[DrawSettings, int]:
    """The benchmark's own settings with those of the command line over them, and how many images of each prompt. Raises
    UserError for a number out of range."""
    benchmark = BENCHMARKS[arguments.name]
    own = benchmark.drawing
    given = {
        "height": own.height,
        "width": own.width,
        "images_per_prompt": own.images,
        "cfg": own.guidance,
        "temperature": own.temperature,
        "upsampling_ratio": own.upsampling_ratio,
        "steps": own.steps,
        "decoder_guidance": own.decoder_guidance,
        "batch_size": benchmark.batch_size,
    }
    for name in given:
        if (value := getattr(arguments, name)) is not None:
            lowest = _LOWEST.get(name, 1)
            if not math.isfinite(value) or value < lowest:
                raise UserError(f"--{name.replace('_', '-')} is {value}; it must be {lowest:g} or more.")
            given[name] = value
    images = given["images_per_prompt"]
    settings = DrawSettings(
        height=given["height"],
        width=given["width"],
        temperature=given["temperature"],
        guidance_scale=given["cfg"] if given["cfg"] > 1 else None,
        upsampling_ratio=given["upsampling_ratio"],
        num_inference_steps=given["steps"],
        decoder_guidance_scale=given["decoder_guidance"],
        decode_batch_size=given["batch_size"],
        seed=arguments.seed,
        engine="auto",
        same_noise_per_group=images == 1,  # so that a single one is what an evaluation draws
    )
    return settings, images


def reward_entries(arguments: argparse.Namespace, records: Sequence[PromptRecord] = ()) -> list[Mapping[str, Any]]:
    """Entries as a recipe has them: those of the command line, else the benchmark's own. A judge is asked the prompts'
    own questions where they have some. They wait in the machine's
    memory while images are drawn. Raises UserError for what is not YAML."""
    entries: list[Any] = [parse_yaml(text, "--reward", lines=False)[0] for text in arguments.reward or ()]
    if arguments.judge is not None:
        asked = any(record.metadata.get(QUESTIONS) for record in records)
        own = BENCHMARKS[arguments.name].judge
        judge = {"use": "judge_questions"} if asked else {"use": "vlm_judge", **own}
        entries.append({**judge, "name": "judge", "url": arguments.judge})
    if arguments.no_scores:
        if entries:
            raise UserError("--no-scores goes with neither --reward nor --judge.")
        return []
    entries = entries or list(BENCHMARKS[arguments.name].rewards)
    entries = [{"use": entry} if isinstance(entry, str) else entry for entry in entries]
    return [{"offload": True, **entry} if isinstance(entry, Mapping) else entry for entry in entries]


def missing_needs(entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What the rewards need and have not, in words."""
    for entry in entries:
        try:
            spec = RewardSpec.from_mapping(entry)
            needs = needs_of(resolve(str(spec.use)), spec.params)
        except UserError as error:
            yield str(error)
            continue
        how = {"weights": "is not downloaded yet", "package": "is not installed", "file": "does not exist"}
        for need in needs:
            if not need.there:
                yield f"reward {spec.name}: {need.what} {how.get(need.how, 'is not given')}"


def described(plan: "BenchmarkPlan | None", arguments: argparse.Namespace) -> str:
    """What would be drawn, how, and where it would go."""
    benchmark, (settings, images) = BENCHMARKS[arguments.name], settings_of(arguments)
    output, how = output_of(arguments), settings.to_mapping()
    lines = [f"benchmark  {arguments.name}: {benchmark.title}"]
    if plan is not None:
        there = sum(plan.folder(output).image(sample).exists() for sample in plan.samples)
        count = len(plan.records)
        lines.append(f"prompts    {count}{_groups(plan)}")
        lines.append(f"images     {count * images}, {images} of each prompt, of which {there} are there")
    ratio = settings.upsampling_ratio
    sides = f"{settings.height}×{settings.width}"
    drawn = f"{round(settings.height * ratio)}×{round(settings.width * ratio)}"
    size = sides if ratio == 1 else f"{drawn} ({sides}, upsampled by {ratio:g})"
    guidance = "none" if settings.guidance_scale is None else f"{settings.guidance_scale:g}"
    lines += [
        f"size       {size}",
        f"sampling   temperature {settings.temperature:g}, guidance {guidance}, seed {settings.seed}",
        f"decoder    {how['num_inference_steps']} steps, guidance {settings.decoder_guidance_scale:g}",
    ]
    names = [str(entry.get("name", entry.get("use"))) for entry in reward_entries(arguments)]
    lines.append(f"scores     {', '.join(names) or 'none here; the images are laid out for the official scorer'}")
    official = f", and {output}/official/" if arguments.name in WRITERS else ""
    return "\n".join([*lines, f"output     {output}/images/ in UniAR's layout{official}"])


def _groups(plan: BenchmarkPlan) -> str:
    for key in plan.benchmark.groups:
        counts = Counter(str(record.metadata[key]) for record in plan.records if key in record.metadata)
        if counts:
            return f": {', '.join(f'{name} {count}' for name, count in sorted(counts.items()))}"
    return ""
