"""What a recipe can say of a named held-out set."""

# ruff: noqa: RUF009 (`setting` wraps dataclasses.field, which the rule would let pass)

import dataclasses
from typing import Any

from uniar.reading.settings import setting


@dataclasses.dataclass(frozen=True)
class EvaluationSetSection:
    """One of the sets that evaluations draw and score. What is null is as `evaluate`, or the recipe, has it."""

    prompts: str | None = setting("Its held-out prompts; null: evaluate.prompts.", None, path=True)
    rewards: list[dict[str, Any]] | None = setting("Its rewards; null: those of other evaluations.", None)
    limit: int | None = setting("Use only the first prompts, this many; never more than evaluate.limit.", None, ge=1)
    height: int | None = setting("Height of its images as the model draws them; null: rollout.height.", None, ge=1)
    width: int | None = setting("Width of its images as the model draws them; null: rollout.width.", None, ge=1)
    upsampling_ratio: float | None = setting(
        "Size of the decoded image over that of the drawing, 1 to 2; null: decode.upsampling_ratio.", None, ge=1, le=2
    )
    samples_per_prompt: int | None = setting("Samples of each prompt; null: as evaluate has it.", None, ge=1)
    temperature: float | None = setting("Sampling temperature; 0: greedy, null: evaluate.temperature.", None, ge=0)
    text_temperature: float | None = setting("The same of written text; null: evaluate.text_temperature.", None, ge=0)
    episodes: dict[str, str] | None = setting("How its prompts become turns; null: rollout.episodes.", None)
    guidance_scale: float | None = setting(
        "Strength of classifier-free guidance; 1: none, null: evaluate.guidance_scale.", None, ge=1
    )
    num_inference_steps: int | None = setting("Denoising steps of the decoder; null: as evaluate has it.", None, ge=1)
