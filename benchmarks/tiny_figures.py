"""The figures of UniAR-Tiny's model card, on held-out captions, questions and edits.

    python -m benchmarks.tiny_figures --model assets/uniar-tiny --output figures.json

Everything goes the way a user goes: prompts through the processor, the rollout engine, the SD3 decoder. What is in an
image is judged by `rl.tiny.detector`, from its pixels alone.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor

from rewards.contract.base import RewardBatch
from rewards.geneval.request import SKILLS
from rl.tiny.captions import drawing
from rl.tiny.detector import detect, seen_scene
from rl.tiny.edits import KINDS, edit
from rl.tiny.questions import question, question_about
from rl.tiny.scenes import Scenes, scene_faults, written_scene
from rl.tiny.shapes import Shapes
from rl.tiny.stages.learning import encode
from rl.tiny.stages.model import GRID, SIDE
from rl.tiny.stages.stage import randomness
from rl.tiny.world import free_scene, render
from uniar.answering import answer
from uniar.conversations import Drawing, Picture
from uniar.generation import draw_noise, rollout
from uniar.modeling_decoder import UniARVisualDecoder
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.processing import build_visual_prompt
from uniar.reading.files import user_path
from uniar.seeds import seed_of

GUIDANCE = 2.0
TEMPERATURE = 0.5
STEPS = 6
DECODER_GUIDANCE = 1.5
BATCH = 50


class Figures:
    """Measures one checkpoint. `count` is how many samples each figure has (a skill's, for drawings, a sixth)."""

    def __init__(self, folder: Path, *, count: int, seed: int, temperature: float, guidance: float) -> None:
        self.model = UniARForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        self.decoder = UniARVisualDecoder.from_pretrained(folder, torch_dtype=torch.float32)
        self.count, self.seed, self.temperature, self.guidance = count, seed, temperature, guidance

    def reconstruction(self) -> dict[str, float]:
        """Share of free scenes whose things are all right after encoding to bits and decoding."""
        rng, _ = randomness(self.seed, "reconstruction")
        scenes = [free_scene(rng) for _ in range(self.count)]
        images = self._decode(encode(self.decoder.bsq_encoder, scenes))
        right = [not scene_faults(detect(image), scene) for image, scene in zip(images, scenes, strict=True)]
        return {"reconstruction": _share(right)}

    def drawing(self) -> dict[str, float]:
        """Strict score of drawings, over the skills and for each; and of questions about them, read from their bits."""
        rng, _ = randomness(self.seed, "drawing")
        items = [drawing(rng, "held_out", skill) for skill in SKILLS for _ in range(self.count // len(SKILLS))]
        bits = self._draw([item.prompt for item in items])
        images = self._decode(bits)
        scores = _right(Shapes(), images, [item.metadata for item in items])
        figures = {"drawing": _share(scores)}
        for skill in SKILLS:
            figures[f"drawing/{skill}"] = _share(
                [score for score, item in zip(scores, items, strict=True) if item.metadata["tag"] == skill]
            )
        asked = [
            (question_about(rng, scene), Drawing(own, GRID))
            for image, own in zip(images, bits, strict=True)
            if (scene := seen_scene(image)) is not None
        ]
        right = self._answered([item for item, _ in asked], [picture for _, picture in asked])
        return figures | {"reading own drawings": _share(right), "drawings that can be asked about": len(asked)}

    def answering(self) -> dict[str, float]:
        """Share of questions about rendered images that are answered exactly, over all and for each kind."""
        rng, _ = randomness(self.seed, "answering")
        items = [question(rng, "held_out") for _ in range(self.count)]
        right = self._answered(items, [render(item.scene) for item in items])
        figures = {"answering": _share(right)}
        for kind in sorted({item.kind for item in items}):
            figures[f"answering/{kind}"] = _share(
                [is_right for is_right, item in zip(right, items, strict=True) if item.kind == kind]
            )
        return figures

    def editing(self) -> dict[str, float]:
        """Share of edits whose target is there with nothing else changed, over all and for each kind."""
        rng, _ = randomness(self.seed, "editing")
        items = [edit(rng, "held_out", kind) for kind in KINDS for _ in range(self.count // len(KINDS))]
        bits = self._draw([item.instruction for item in items], [render(item.source) for item in items])
        wanted = [{"scene": written_scene(item.target)} for item in items]
        scores = _right(Scenes(), self._decode(bits), wanted)
        figures = {"editing": _share(scores)}
        for kind in KINDS:
            figures[f"editing/{kind}"] = _share(
                [score for score, item in zip(scores, items, strict=True) if item.metadata["edit"] == kind]
            )
        return figures

    def _draw(self, prompts: Sequence[str], images: Sequence[Image.Image] | None = None) -> Tensor:
        """Bits (B, T, L, S, K), each sample's from its own noise."""
        drawn = []
        for start in range(0, len(prompts), BATCH):
            rows = slice(start, start + BATCH)
            prompt = build_visual_prompt(
                prompts[rows],
                self.model,
                self.processor,
                height=SIDE,
                width=SIDE,
                input_images=None if images is None else images[rows],
            )
            seeds = [seed_of("figures", self.seed, start + place) for place in range(len(prompt))]
            noise = draw_noise(seeds, prompt.new_tokens, self.model.config.vision_config.code_shape)
            drawn.append(
                rollout(self.model, prompt, noise, guidance_scale=self.guidance, temperature=self.temperature).bits
            )
        return torch.cat(drawn)

    def _decode(self, bits: Tensor) -> list[Image.Image]:
        return self.decoder.decode(
            bits,
            SIDE,
            SIDE,
            upsampling_ratio=1.0,
            num_inference_steps=STEPS,
            guidance_scale=DECODER_GUIDANCE,
            noise_seeds=[seed_of("figures", self.seed, number) for number in range(len(bits))],
            batch_size=BATCH,
        )

    def _answered(self, items: Sequence[Any], pictures: Sequence[Picture]) -> list[bool]:
        said = []
        for start in range(0, len(items), BATCH):
            rows = slice(start, start + BATCH)
            questions = [item.question for item in items[rows]]
            said += answer(self.model, self.processor, pictures[rows], questions, max_new_tokens=6)
        return [text.strip() == item.answer for text, item in zip(said, items, strict=True)]


def _right(reward: Shapes | Scenes, images: Sequence[Image.Image], metadata: Sequence[dict[str, Any]]) -> list[bool]:
    batch = RewardBatch(prompts=[""] * len(images), images=list(images), metadata=list(metadata))
    return [isinstance(result, dict) and result["score"] == 1 for result in reward.score(batch)]


def _share(right: Sequence[bool]) -> float:
    return sum(right) / max(len(right), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=user_path, required=True, help="checkpoint folder")
    parser.add_argument("--output", type=user_path, help="JSON file for the figures")
    parser.add_argument("--count", type=int, default=600, help="samples for each figure (default 600)")
    parser.add_argument("--temperature", type=float, default=TEMPERATURE, help=f"of drawing (default {TEMPERATURE})")
    parser.add_argument("--guidance", type=float, default=GUIDANCE, help=f"scale of drawing (default {GUIDANCE})")
    parser.add_argument("--seed", type=int, default=0, help="of captions, questions and noise (default 0)")
    parser.add_argument("--only", nargs="*", help="reconstruction, drawing, answering, editing (default: all)")
    arguments = parser.parse_args()
    figures = Figures(
        arguments.model,
        count=arguments.count,
        seed=arguments.seed,
        temperature=arguments.temperature,
        guidance=arguments.guidance,
    )
    measures: dict[str, Callable[[], dict[str, float]]] = {
        name: getattr(figures, name) for name in ("reconstruction", "drawing", "answering", "editing")
    }
    found: dict[str, float] = {}
    for name in arguments.only or measures:
        found |= measures[name]()
        print(json.dumps({key: round(value, 4) for key, value in found.items()}, indent=2), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
