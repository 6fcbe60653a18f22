"""How time and memory of an update grow up to 64 GPUs, computed for the released size: the tables of docs/scaling.md.

    python benchmarks/scaling_plan.py

Nothing here is measured. Memory is as `uniar-rl plan` has it. Work is counted by running the model's own code on the
meta device. Seconds are that work, and the bytes that must be read and sent, over the rates of the GPU's datasheet, one
after the other: the least that an update can take without overlap. No run reaches such rates.
"""

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

# The folder of this script comes first, where rewards.py would be taken for the package.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

from rl.config.recipe import load_recipe  # noqa: E402
from rl.config.sections import Recipe  # noqa: E402
from rl.plan.caches import cache_bytes  # noqa: E402
from rl.plan.estimate import GIB, PREFIX, Plan, make_plan  # noqa: E402
from rl.plan.memory import fused_kernels  # noqa: E402
from rl.plan.planned_model import planned_model  # noqa: E402
from rl.plan.simulation import Simulation, alike_of, denoise, paint, visual_gap  # noqa: E402

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "configs" / "uniar_sft_512.yaml"
MEMORY = 80 * GIB
ENGINES = {name: f"trainer.deepspeed={ROOT}/configs/deepspeed/{name}.json" for name in ("zero2", "zero3")}


@dataclass(frozen=True)
class Gpu:
    """Rates of one GPU by its datasheet."""

    flops: float = 989e12
    """a second, bfloat16, dense"""
    memory: float = 3.35e12
    """bytes per second"""
    network: float = 400e9
    """bytes per second that a collective moves on each: 8 adapters of 400 Gbit/s a node, NVLink being a little
    faster"""


H100 = Gpu()


@dataclass(frozen=True)
class Work:
    """Of one image, in floating-point operations."""

    drawing: float
    reference: float
    update: float
    decoding: float


@dataclass(frozen=True)
class Seconds:
    """Of an update, by phase."""

    drawing: float
    decoding: float
    reference: float
    update: float
    sending: float

    @property
    def together(self) -> float:
        return self.drawing + self.decoding + self.reference + self.update + self.sending


@functools.cache
def simulation() -> Simulation:
    return Simulation(planned_model(load_recipe(RECIPE).model))


def plan(recipe: Recipe, gpus: int) -> Plan:
    return make_plan(recipe, simulation(), gpus, MEMORY)


@contextmanager
def counted() -> Iterator[FlopCounterMode]:
    with fused_kernels(), FlopCounterMode(display=False) as counter:
        yield counter


def work_of(recipe: Recipe) -> Work:
    alike = alike_of(recipe, recipe.trainer["per_device_train_batch_size"])
    rollout = recipe.rollout
    return work(rollout.height, rollout.width, recipe.decode.num_inference_steps, rollout.samples_per_prompt, alike)


@functools.cache
def work(height: int, width: int, steps: int, group: int, alike: int) -> Work:
    """Drawing an image a token at a time is the work of one pass over all of them. A prompt's positions are computed
    once for the `group` of images that are drawn of it, and for as many as are `alike` in a micro-batch."""
    size, tokens = (height, width), tokens_of(height, width)
    policy = simulation().model.policy(load_recipe(RECIPE).model)
    with counted() as drawing, torch.no_grad():
        visual_gap(policy, group, PREFIX, tokens, group)
    with counted() as forward, torch.no_grad():
        visual_gap(policy, alike, PREFIX, tokens, alike)
    policy.train()
    policy.gradient_checkpointing_enable({"use_reentrant": False})
    with counted() as update:
        visual_gap(policy, alike, PREFIX, tokens, alike).sum().backward()
    transformer, vae = simulation().decoder(torch.bfloat16)
    with counted() as denoising, torch.no_grad():
        denoise(transformer, vae, size)
    with counted() as painting, torch.no_grad():
        paint(vae, size)
    decoding = steps * denoising.get_total_flops() + painting.get_total_flops()
    drawn = drawing.get_total_flops() / group
    return Work(drawn, *(counter.get_total_flops() / alike for counter in (forward, update)), decoding)


def tokens_of(height: int, width: int) -> int:
    side = simulation().model.config.vision_config.pixels_per_token
    return (height // side) * (width // side)


def seconds(recipe: Recipe, gpus: int, gpu: Gpu = H100) -> Seconds:
    """The least an update can take on so many GPUs."""
    drawn, trainer = recipe.rollout, recipe.trainer
    tokens, micro = tokens_of(drawn.height, drawn.width), trainer["gradient_accumulation_steps"]
    images, one = trainer["per_device_train_batch_size"] * micro, work_of(recipe)
    policy = simulation().policy(recipe)
    # A token reads every weight that computes it, once for all images, and each image's cache, half full on average.
    visited = [policy.model.language_model.layers, policy.visual_decoder_layers, policy.output_layer_vistok]
    weights = sum(parameter.nbytes for module in visited for parameter in module.parameters())
    reading = tokens * (weights + images * cache_bytes(policy, PREFIX + tokens // 2)) / gpu.memory
    states = plan(recipe, gpus).states
    stage, trained, whole = states.zero.stage, states.trained_bytes, states.whole
    # Every micro-batch gives away its gradients, and the new weights come back once an update. Under ZeRO-3 every
    # micro-batch gathers the weights instead, for its two passes and for the reference, and a rollout once.
    sent = micro * (3 * whole + trained) + whole if stage == 3 else (micro + 1) * trained
    return Seconds(
        drawing=max(reading, images * one.drawing / gpu.flops),
        decoding=images * one.decoding / gpu.flops,
        reference=images * one.reference / gpu.flops,
        update=images * one.update / gpu.flops,
        sending=sent * (gpus - 1) / gpus / gpu.network,
    )


# Tables --------------------------------------------------------------------------------------------------------------


def peaks(recipes: list[Recipe], gpus: int) -> list[str]:
    """GiB per GPU at its peak under each engine, and in which phase."""
    found = [plan(recipe, gpus) for recipe in recipes]
    return [f"{one.peak / GIB:.1f} ({one.peak_phase}){'' if one.fits else ', too much'}" for one in found]


def divided(images: int) -> tuple[str, str]:
    """So many images of a GPU in micro-batches of at most eight."""
    micro = min(8, images)
    return f"trainer.per_device_train_batch_size={micro}", f"trainer.gradient_accumulation_steps={images // micro}"


def on_both_engines(*overrides: str) -> list[Recipe]:
    computed_again = "trainer.gradient_checkpointing=true"  # auto fills what is left
    return [load_recipe(RECIPE, [computed_again, engine, *overrides]) for engine in ENGINES.values()]


def by_gpus() -> list[list[str]]:
    """The same 512 images per update on more GPUs."""
    rows = [["GPUs", "images per GPU", *ENGINES, "zero2: s", "drawing", "sending", "zero3: s", "sending"]]
    for gpus in (8, 16, 32, 64):
        images = 512 // gpus
        recipes = on_both_engines(*divided(images))
        two, three = (seconds(recipe, gpus) for recipe in recipes)
        times = [two.together, two.drawing, two.sending, three.together, three.sending]
        rows.append([str(gpus), str(images), *peaks(recipes, gpus), *(f"{time:.1f}" for time in times)])
    return rows


def by_images() -> list[list[str]]:
    """More images per update on 8 GPUs."""
    rows = [["images", "per GPU", *ENGINES, "zero2: s", "per image and GPU"]]
    for images in (4, 16, 64, 128, 256):
        recipes = on_both_engines(*divided(images))
        time = seconds(recipes[0], 8).together
        rows.append([str(8 * images), str(images), *peaks(recipes, 8), f"{time:.1f}", f"{time / images:.2f}"])
    return rows


def by_resolution() -> list[list[str]]:
    """512 images per update on 8 GPUs, at other sizes. TFLOP are an image's."""
    rows = [["pixels", "tokens", "bits", *ENGINES, "drawing, TFLOP", "update", "decoding", "zero2: s"]]
    for side in (256, 512, 768, 1024):
        recipes = on_both_engines(f"rollout.height={side}", f"rollout.width={side}")
        one = work_of(recipes[0])
        counts = [f"{flops / 1e12:.1f}" for flops in (one.drawing, one.update, one.decoding)]
        sizes = [f"{side}×{side}", str(tokens_of(side, side)), f"{plan(recipes[0], 8).bits_per_image:,}"]
        rows.append([*sizes, *peaks(recipes, 8), *counts, f"{seconds(recipes[0], 8).together:.1f}"])
    return rows


def by_group() -> list[list[str]]:
    """512 images per update on 8 GPUs, in other groups."""
    rows = [["images per prompt", "prompts per update", *ENGINES]]
    for group in (4, 16, 64, 256):
        recipes = on_both_engines(f"rollout.samples_per_prompt={group}")
        rows.append([str(group), str(512 // group), *peaks(recipes, 8)])
    return rows


TABLES = {"GPUs": by_gpus, "images": by_images, "resolution": by_resolution, "group size": by_group}


def markdown(rows: list[list[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    for table in TABLES.values():
        print(markdown(table()), end="\n\n")


if __name__ == "__main__":
    main()
