"""Prompts → drawn bits, with noise that depends on nothing but the run's seed, the step and the sample."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rl.algorithm.guidance import Gaps
from rl.data.prompts import PromptRecord
from rl.policy.replay import Branch
from rl.policy.samples import DrawSettings, Sample
from uniar.generation import Rollout, draw_noise, rollout
from uniar.processing import build_visual_prompt
from uniar.turn_prompt import TurnPrompt

if TYPE_CHECKING:
    from uniar.modeling_uniar import UniARForConditionalGeneration


@dataclass(frozen=True)
class Drawn:
    """Samples as drawn: what the policy is replayed with, and what it drew."""

    prompt: Branch
    unconditional: Branch | None
    rollout: Rollout

    @property
    def gaps(self) -> Gaps:
        """Raw gaps of the policy that drew, where they were asked for."""
        return Gaps(self.rollout.gap_cond, self.rollout.gap_uncond)


def draw(
    model: "UniARForConditionalGeneration",
    processor: Any,
    samples: Sequence[Sample],
    settings: DrawSettings,
    *,
    step: int = 0,
    return_gaps: bool = False,
) -> Drawn:
    """Draws B samples. Each prompt is prefilled once, however many of its samples are here and in whatever order. In
    float32 a sample is the same whatever it is drawn with; in bfloat16 some bits depend on how many are drawn at once.

    Prompts to draw and prompts to edit may stand in one batch. Raises UserError for an image that cannot be opened.
    """
    prompt, prompt_index = _prefixes(model, processor, samples, settings)
    seeds = [settings.bits_seed(sample, step) for sample in samples]
    drawn = rollout(
        model,
        prompt,
        draw_noise(seeds, prompt.new_tokens, model.config.vision_config.code_shape),
        prompt_index=prompt_index,
        guidance_scale=settings.guidance_scale,
        temperature=settings.temperature,
        return_gaps=return_gaps,
        show_progress=settings.show_progress,
        memory_budget=settings.memory_budget,
        engine=settings.engine,
    )
    return Drawn(*_branches(model, prompt, prompt_index), drawn)


def branches(
    model: "UniARForConditionalGeneration", processor: Any, samples: Sequence[Sample], settings: DrawSettings
) -> tuple[Branch, Branch | None]:
    """What samples that are drawn already are replayed with, as `draw` gives it."""
    return _branches(model, *_prefixes(model, processor, samples, settings))


def _prefixes(
    model: "UniARForConditionalGeneration", processor: Any, samples: Sequence[Sample], settings: DrawSettings
) -> tuple[TurnPrompt, list[int]]:
    """The prefixes of the samples' prompts, each prompt once, and which of them is each sample's."""
    records: dict[str, PromptRecord] = {sample.record.id: sample.record for sample in samples}
    numbers = {identity: number for number, identity in enumerate(records)}
    prompt = build_visual_prompt(
        [record.prompt for record in records.values()],
        model,
        processor,
        height=settings.height,
        width=settings.width,
        input_images=[
            None if record.image is None else record.image_to_edit(settings.height, settings.width)
            for record in records.values()
        ],
        unconditional=settings.guidance_scale is not None,
    )
    return prompt, [numbers[sample.record.id] for sample in samples]


def _branches(
    model: "UniARForConditionalGeneration", prompt: TurnPrompt, prompt_index: Sequence[int]
) -> tuple[Branch, Branch | None]:
    rows = torch.tensor(prompt_index, device=model.device)
    image_token = model.config.image_token_id
    unconditional = None if prompt.unconditional is None else Branch.of(prompt.unconditional, rows, image_token)
    return Branch.of(prompt, rows, image_token), unconditional
