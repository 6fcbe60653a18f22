"""The README.md of an exported checkpoint: what it is, how it was made, what its rewards did, how to load it."""

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from rl.checkpoint.folders import processes_of
from rl.checkpoint.layout import CHECKPOINT
from rl.checkpoint.tensor_files import main_dtype
from rl.config.model import ModelSection
from rl.config.recipe import load_recipe
from rl.config.sections import Recipe
from rl.evaluation.evaluate import paired_gain
from rl.evaluation.understanding import ANSWER_SCORES
from rl.records.environment import versions
from rl.run.folder import RunFolder
from rl.run.records import scores_in
from uniar.errors import UserError
from uniar.reading.yaml_files import dump_yaml
from uniar.shareable import shareable

LOADING = """\
import torch
from transformers import AutoProcessor
from uniar import UniARForConditionalGeneration

path = {path!r}  # folder or hub id
attention = "sdpa"  # or "eager", "flash_attention_2"; UniAR's own code draws with the last only
model = UniARForConditionalGeneration.from_pretrained(path, torch_dtype={dtype}, attn_implementation=attention)
processor = AutoProcessor.from_pretrained(path)
"""

LOADING_ADAPTER = """\
import torch
from peft import PeftModel
from transformers import AutoProcessor
from uniar import UniARForConditionalGeneration

base, adapter = {base!r}, {path!r}  # folders or hub ids
attention = "sdpa"  # or "eager", "flash_attention_2"; UniAR's own code draws with the last only
model = UniARForConditionalGeneration.from_pretrained(base, torch_dtype={dtype}, attn_implementation=attention)
model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
processor = AutoProcessor.from_pretrained(base)
"""

DRAWING = """\
from inference.visual_inputs import prepare_visual_inputs
from uniar import UniARVisualDecoder

decoder = UniARVisualDecoder.from_pretrained({decoder}, device=model.device, torch_dtype=model.dtype)
inputs = prepare_visual_inputs(["a photo of a red circle"], model, processor, ar_height={height}, ar_width={width})
indices = model.generate_visual(**inputs, temperature={temperature:g}, cfg={guidance:g})
image = decoder.decode(
    indices, ar_height={height}, ar_width={width}, upsampling_ratio={upsampling:g}, num_inference_steps={steps}
)[0]
image.save("circle.png")
"""


@dataclass(frozen=True)
class RewardChange:
    """One held-out score before and after: means over N samples or questions, gain paired, with its standard error."""

    name: str
    before: float
    after: float
    gain: float
    error: float
    samples: int


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint comes from, as far as its run's folder tells."""

    base: str
    """hub id or folder that training started from"""
    recipe: Recipe | None = None
    steps: int | None = None
    processes: int | None = None
    average: bool = False
    """its weights are the averages of model.ema"""
    evaluated: tuple[int, int] | None = None
    """the updates after which `rewards` were measured"""
    rewards: Sequence[RewardChange] = field(default_factory=tuple)
    asked: tuple[int, int] | None = None
    """the updates after which `understanding` was measured"""
    understanding: Sequence[RewardChange] = field(default_factory=tuple)


def loading_snippet(path: str, dtype: torch.dtype, base: str | None = None) -> str:
    """The card's first lines of code: they leave `model` and `processor`. `base` is the model of an adapter."""
    return (LOADING if base is None else LOADING_ADAPTER).format(path=path, dtype=dtype, base=base)


def origin_of(checkpoint: Path, base: str | None = None, *, average: bool = False) -> Origin:
    """What the run's folder around `checkpoint`, or around its averaged weights, tells. Raises UserError when neither
    it nor `base` says where training started."""
    folder = RunFolder(checkpoint.parent)
    steps = int(number) if (number := checkpoint.name.removeprefix(CHECKPOINT)).isdigit() else None
    if not folder.config.is_file():
        if base is None:
            raise UserError(
                f"{folder.config} is not there to say where training started; name that checkpoint with --source."
            )
        return Origin(base, steps=steps, average=average)
    recipe = load_recipe(folder.config)
    origin = Origin(base or base_name(recipe.model), recipe, steps, processes_of(checkpoint), average)
    return origin if recipe.evaluate.ema != average else _measured(origin, folder)  # else of other weights


def _measured(origin: Origin, folder: RunFolder) -> Origin:
    """With what the run's evaluations say."""
    evaluated, rewards = _rewards(folder, origin.steps)
    asked, understanding = _understanding(folder, origin.steps)
    return replace(origin, evaluated=evaluated, rewards=rewards, asked=asked, understanding=understanding)


def card_of_run(folder: RunFolder, recipe: Recipe, source: Path, steps: int, processes: int) -> str:
    """The card of what a run has trained when it ends after `steps` updates on so many processes. Its config on the
    disk is not read: whatever has become of it, the run is to leave what it has trained."""
    origin = Origin(base_name(recipe.model), folder.resolved(recipe), steps, processes, recipe.evaluate.ema)
    return model_card(folder.path.name, _measured(origin, folder), main_dtype(source))


def base_name(section: ModelSection) -> str:
    """What a recipe calls the model that it starts from."""
    return section.path if section.path is not None else f"preset {section.preset}, seed {section.seed}"


def model_card(name: str, origin: Origin, dtype: torch.dtype, *, adapter_base: str | None = None) -> str:
    """The whole README.md. `dtype` is the type to load the weights in; `adapter_base`: the card goes with a LoRA
    adapter alone, which is loaded over this model."""
    adapter = adapter_base is not None
    made = "LoRA adapter" if adapter else "checkpoint"
    parts = [
        _front_matter(origin, adapter),
        f"# {name}\n",
        f"A [UniAR](https://huggingface.co/ShareLab-SII/UniAR-SFT) {made} after {_training(origin.recipe)} with "
        f"uniar-rl{f', {origin.steps} updates' if origin.steps is not None else ''}. It started from "
        f"`{shareable(origin.base)}`"
        + (f" and was trained with {_method(origin.recipe)}." if origin.recipe else ".")
        + f"{_averaging(origin)}\n",
        _reward_table(origin),
        _understanding_table(origin),
        f"## Use\n\n```python\n{_snippet(name, origin, dtype, adapter_base)}```\n",
        _how_it_was_made(origin),
        _versions(),
    ]
    return "\n".join(part for part in parts if part)


def _training(recipe: Recipe | None) -> str:
    return "reinforcement learning" if recipe is None or recipe.distill is None else "distillation"


def _averaging(origin: Origin) -> str:
    if not origin.average:
        return ""
    section = None if origin.recipe is None else origin.recipe.model.ema
    how = "" if section is None else f" (decay {section.decay:g}, moved every {section.update_every} updates)"
    return f" Its weights are the exponential moving average of the trained ones{how}."


def _front_matter(origin: Origin, adapter: bool) -> str:
    tags = ["uniar", "image-generation", "image-editing", "reinforcement-learning", *(["lora"] if adapter else [])]
    values = {"library_name": "peft" if adapter else "transformers", "tags": tags}
    if _is_hub_id(origin.base):
        values = {"base_model": origin.base, **values}
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---\n"


def _is_hub_id(base: str) -> bool:
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", base)) and not Path(base).exists()


def _method(recipe: Recipe) -> str:
    drawn, algorithm = recipe.rollout, recipe.algorithm
    weights = "full fine-tuning" if recipe.model.lora is None else f"LoRA of rank {recipe.model.lora.r}"
    scale = drawn.guidance_settings.drawing_scale
    guidance = "" if scale is None else f", guidance {drawn.guidance} {scale:g}"
    how, end = algorithm.loss, f", KL weight {algorithm.beta:g}"
    reference = algorithm.reference.guidance(drawn.guidance_settings)
    if reference != drawn.guidance_settings:
        end += f" to the starting model at guidance {reference.scale:g} and temperature {reference.temperature:g}"
    if algorithm.credit is not None:
        end += f", credit by the {algorithm.credit}"
    if recipe.distill is not None:
        how, end = (
            f"on-policy distillation from experts ({', '.join(recipe.distill.experts)}; by {recipe.distill.by})",
            "",
        )
    return (
        f"{how} ({weights}) on {drawn.height}×{drawn.width} drawings, {drawn.samples_per_prompt} a prompt, "
        f"temperature {drawn.temperature:g}{guidance}{end}"
    )


def _reward_table(origin: Origin) -> str:
    if not origin.rewards:
        return "## Rewards\n\nThe run has no evaluations on held-out prompts to show.\n"
    held = origin.recipe.evaluate
    settings = f"temperature {held.temperature:g}, guidance {held.guidance_scale:g}"
    if held.sets:
        settings = f"of the sets {', '.join(held.sets)}, each at its own settings"
    conditions = f"{settings}, the same noise each time"
    return (
        f"## Rewards\n\nMeans over {origin.rewards[0].samples} samples of held-out prompts ({conditions}); the "
        f"gain is paired by sample, ± its standard error.\n\n{_table('reward', origin.evaluated, origin.rewards)}"
    )


def _understanding_table(origin: Origin) -> str:
    if not origin.understanding:
        return ""
    return (
        f"## Understanding\n\nMeans over {origin.understanding[0].samples} held-out questions about pictures; the gain "
        "is paired by question, ± its standard error. P(answer) is the probability of the right answer word for word."
        "\n\n"
        f"{_table('score', origin.asked, origin.understanding)}"
    )


def _table(what: str, steps: tuple[int, int], changes: Sequence[RewardChange]) -> str:
    rows = [
        f"| {change.name} | {change.before:.4f} | {change.after:.4f} | {change.gain:+.4f} ± {change.error:.4f} |"
        for change in changes
    ]
    head = [f"| {what} | update {steps[0]} | update {steps[1]} | gain |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *rows, ""])


def _snippet(name: str, origin: Origin, dtype: torch.dtype, adapter_base: str | None) -> str:
    recipe = origin.recipe
    settings = {"height": 512, "width": 512, "temperature": 0.1, "guidance": 2.5, "steps": 28, "upsampling": 1}
    if recipe is not None:
        settings |= {"height": recipe.rollout.height, "width": recipe.rollout.width}
        settings |= {"temperature": recipe.evaluate.temperature, "guidance": recipe.evaluate.guidance_scale}
        settings["upsampling"] = recipe.decode.upsampling_ratio
    drawing = DRAWING.format(decoder="path" if adapter_base is None else "base", **settings)
    base = None if adapter_base is None else shareable(adapter_base)
    return f"{loading_snippet(name, dtype, base)}\n{drawing}"


def _how_it_was_made(origin: Origin) -> str:
    if origin.recipe is None:
        return ""
    launcher = f"torchrun --nproc_per_node {origin.processes} -m rl.train" if (origin.processes or 1) > 1 else None
    processes = f" on {origin.processes} process{'es' * (origin.processes != 1)}" if origin.processes else ""
    return (
        f"## How it was made\n\n`{launcher or 'uniar-rl train'} recipe.yaml`{processes}, where recipe.yaml is as "
        "follows, with names in place of paths, and without addresses and keys.\n\n"
        f"```yaml\n{dump_yaml(shareable(origin.recipe.to_mapping()))}```\n"
    )


def _versions() -> str:
    found = [f"{package} {number}" for package, number in versions().items()]
    return f"Exported with {', '.join(found)}, Python {platform.python_version()}.\n"


def _rewards(folder: RunFolder, steps: int | None) -> tuple[tuple[int, int] | None, list[RewardChange]]:
    """First evaluation against the last one up to `steps`; nothing where there are not two of the same samples."""
    return _changes({step: _columns(found) for step, found in folder.evaluated("total", whole=True)}, steps)


def _understanding(folder: RunFolder, steps: int | None) -> tuple[tuple[int, int] | None, list[RewardChange]]:
    """The same of the held-out questions."""
    columns = {
        step: {label: torch.tensor(scores_in(found[key]), dtype=torch.float64) for key, label in ANSWER_SCORES.items()}
        for step, found in folder.evaluated("understanding")
    }
    return _changes(columns, steps)


def _changes(
    columns: Mapping[int, Mapping[str, torch.Tensor]], steps: int | None
) -> tuple[tuple[int, int] | None, list[RewardChange]]:
    reached = sorted(step for step in columns if steps is None or step <= steps)
    if len(reached) < 2:
        return None, []
    first, last = reached[0], reached[-1]
    before, after = columns[first], columns[last]
    changes = []
    for name in before:
        if name in after and len(before[name]) == len(after[name]):
            gain, error = paired_gain(before[name], after[name])
            means = before[name].nanmean().item(), after[name].nanmean().item()
            changes.append(RewardChange(name, *means, gain, error, len(before[name])))
    return (first, last), changes


def _columns(evaluation: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Reward → (N,) scores, NaN where there is none; what else an evaluation's file holds is left out."""
    samples = len(evaluation["total"])
    return {
        name: torch.tensor(scores_in(column), dtype=torch.float64)
        for name, column in evaluation.items()
        if isinstance(column, list)
        and len(column) == samples
        and all(score is None or isinstance(score, int | float) for score in column)
    }
