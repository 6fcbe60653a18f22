"""What is drawn, and how: a sample, and the settings that all samples of a training or an evaluation share."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rl.data.prompts import PromptRecord
from uniar.engine import Engine
from uniar.seeds import seed_of

if TYPE_CHECKING:
    from rl.config.sections import Recipe


_HOW = ("decode_batch_size", "engine", "memory_budget", "show_progress")


@dataclass(frozen=True)
class Sample:
    """One image to draw: sample number `index` of a prompt's group."""

    record: PromptRecord
    index: int


@dataclass(frozen=True)
class DrawSettings:
    """How samples are drawn and decoded."""

    height: int
    """of the image as the model draws it, in pixels"""
    width: int
    temperature: float
    guidance_scale: float | None
    """None: one branch"""
    upsampling_ratio: float
    num_inference_steps: int
    decoder_guidance_scale: float
    decode_batch_size: int
    seed: int
    same_noise_per_group: bool = True
    memory_budget: int | None = None
    """bytes"""
    show_progress: bool = False
    engine: Engine = "eager"

    @classmethod
    def for_training(cls, recipe: "Recipe") -> "DrawSettings":
        policy = recipe.rollout.guidance_settings
        return cls._of(recipe, policy.temperature, policy.drawing_scale, recipe.seed)

    @classmethod
    def for_evaluation(cls, recipe: "Recipe") -> "DrawSettings":
        """Evaluation's own temperature, guidance and steps; its seed fixes the noise for the whole run."""
        held_out = recipe.evaluate
        scale = held_out.guidance_scale if held_out.guidance_scale != 1 else None
        return cls._of(recipe, held_out.temperature, scale, held_out.seed, held_out.num_inference_steps)

    @classmethod
    def _of(
        cls, recipe: "Recipe", temperature: float, scale: float | None, seed: int, steps: int | None = None
    ) -> "DrawSettings":
        drawn, decode = recipe.rollout, recipe.decode
        budget = drawn.memory_budget_gb
        return cls(
            height=drawn.height,
            width=drawn.width,
            temperature=temperature,
            guidance_scale=scale,
            upsampling_ratio=decode.upsampling_ratio,
            num_inference_steps=steps or decode.num_inference_steps,
            decoder_guidance_scale=decode.guidance_scale,
            decode_batch_size=decode.batch_size,
            seed=seed,
            same_noise_per_group=decode.same_noise_per_group,
            memory_budget=None if budget is None else int(budget * 1e9),
            show_progress=drawn.show_progress,
            engine=drawn.engine,
        )

    def of_images(self) -> dict[str, Any]:
        """Those that images depend on, the others but for the last digits."""
        return {name: value for name, value in asdict(self).items() if name not in _HOW}

    def bits_seed(self, sample: Sample, step: int) -> int:
        """Seed of the uniforms that a sample's bits are drawn from."""
        return seed_of("bits", self.seed, step, sample.record.id, sample.index)
