"""What is drawn, and how: a sample, and the settings that all samples of a training or an evaluation share."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl.data.prompts import PromptRecord
from rl.episodes.registry import Episodes
from uniar.decoder_sizes import DecoderSizes
from uniar.engine import Engine
from uniar.errors import UserError
from uniar.processing import check_size
from uniar.seeds import seed_of

if TYPE_CHECKING:
    from rl.config.sections import Recipe


_HOW = ("decode_batch_size", "engine", "memory_budget", "show_progress")
_OF_EPISODES = ("episodes", "text_temperature", "max_new_tokens")
LARGEST = 2**63
"""beyond any seed"""


@dataclass(frozen=True)
class Sample:
    """Sample number `index` of a prompt's group."""

    record: PromptRecord
    index: int


@dataclass(frozen=True)
class DrawSettings:
    """How samples are drawn, written and decoded."""

    height: int
    """of the image as the model draws it, in pixels, where neither its record nor `sizes` say otherwise"""
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
    episodes: Episodes = field(default_factory=Episodes, compare=False)
    sizes: Sequence[tuple[int, int, float]] = ()
    """height, width and weight of the sizes that groups are drawn in; none: all in height × width"""
    text_temperature: float = 1.0
    """0: the likeliest token each time"""
    max_new_tokens: int = 128
    """longest text where the episode does not say"""
    unconditional: bool = False
    """Turns keep what a replay of the unconditional branch is fed, though the policy that draws has none."""
    decoder: DecoderSizes | None = field(default=None, compare=False)
    """what the decoder can draw, where that is known"""

    @classmethod
    def for_training(cls, recipe: "Recipe") -> "DrawSettings":
        policy, experts = recipe.rollout.guidance_settings, recipe.expert_guidance.values()
        drawn = cls._of(recipe, policy.temperature, policy.drawing_scale, recipe.rollout.text_temperature, recipe.seed)
        return replace(drawn, unconditional=any(expert.convention.replays_unconditional for expert in experts))

    @classmethod
    def for_evaluation(cls, recipe: "Recipe") -> "DrawSettings":
        """Evaluation's own temperature, guidance and steps; its seed fixes the noise for the whole run."""
        held_out = recipe.evaluate
        scale = held_out.guidance_scale if held_out.guidance_scale != 1 else None
        text, steps = held_out.text_temperature, held_out.num_inference_steps
        return cls._of(recipe, held_out.temperature, scale, text, held_out.seed, steps)

    @classmethod
    def _of(
        cls,
        recipe: "Recipe",
        temperature: float,
        scale: float | None,
        text_temperature: float,
        seed: int,
        steps: int | None = None,
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
            episodes=Episodes(drawn.episodes, Path(recipe.source).parent),
            sizes=tuple((size.height, size.width, size.weight) for size in drawn.sizes),
            text_temperature=text_temperature,
            max_new_tokens=drawn.max_new_tokens,
        )

    def to_mapping(self) -> dict[str, Any]:
        """As plain values, those that samples are drawn by."""
        sizes, names = [list(size) for size in self.sizes], self.episodes.names
        found = asdict(replace(self, episodes=Episodes(), decoder=None)) | {"episodes": names, "sizes": sizes}
        del found["unconditional"], found["decoder"]
        return found

    def of_images(self) -> dict[str, Any]:
        """Those that images depend on, the others but for the last digits, as plain values: of sizes, episodes and
        texts only where there are some, so that images of versions that knew of none stay what they were."""
        unused = (*_HOW, *([] if self.sizes else ["sizes"]))
        if set(self.episodes.names.values()) == {"draw"}:
            unused += _OF_EPISODES
        return {name: value for name, value in self.to_mapping().items() if name not in unused}

    def size_of(self, sample: Sample, step: int) -> tuple[int, int]:
        """(height, width) in pixels that a sample draws in, the same for all of its group."""
        if sample.record.size is not None or not self.sizes:
            return sample.record.size or (self.height, self.width)
        ends = list(accumulate(weight for _, _, weight in self.sizes))
        drawn = seed_of("size", self.seed, step, sample.record.id) / LARGEST * ends[-1]
        return self.sizes[min(bisect_right(ends, drawn), len(ends) - 1)][:2]

    def check_size(self, size: Sequence[int], pixels_per_token: int, where: str) -> None:
        """Raises UserError for a (height, width) in pixels that the model or its decoder cannot draw; `where` stands
        before what is wrong."""
        height, width = size
        check_size(height, width, pixels_per_token, where)
        if self.decoder is not None:
            try:
                self.decoder.output(height, width, self.upsampling_ratio)
            except UserError as error:
                raise UserError(f"{where}{error}") from error

    def bits_seed(self, sample: Sample, step: int, turn: int = 0) -> int:
        """Seed of the uniforms that the bits of a sample's turn are drawn from."""
        return seed_of("bits", self.seed, step, sample.record.id, sample.index, *([turn] if turn else []))

    def text_seed(self, sample: Sample, step: int, turn: int) -> int:
        """Seed of the uniforms that the tokens of a sample's turn are drawn from."""
        return seed_of("text", self.seed, step, sample.record.id, sample.index, turn)
