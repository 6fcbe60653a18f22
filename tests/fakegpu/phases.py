"""The phases of an update of the released model, run on the fake GPU and counted:

    python -m fakegpu.phases DEVICE.so PHASE …          prints a line of JSON for each

Shapes: B samples · P prefix positions · T visual tokens · L levels · S patches per token · K bits per code.
"""

import ctypes
import json
import sys

if __name__ == "__main__":
    ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)  # torch reads its registries once, when it is loaded

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any
from unittest.mock import patch

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from fakegpu.counting import GPU, Counts, fake_gpu, moved
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from rl.algorithm.losses import LossInputs, policy_loss
from rl.config.checkpointing import Asked
from rl.config.recipe import load_recipe
from rl.config.sections import Recipe
from rl.plan.caches import cache_parts
from rl.plan.estimate import PREFIX
from rl.plan.planned_model import PlannedModel, planned_model
from rl.plan.simulation import DECODER_PROMPT_TOKENS, Simulation, checkpoint_layers, turns_of
from rl.policy.loading import base_model
from rl.policy.replay import Branch, replay
from uniar import generation
from uniar.engine.memory import text_bytes as engine_text_bytes
from uniar.engine.prefix import prefill
from uniar.engine.steps import Steps
from uniar.engine.text_steps import TextSteps
from uniar.modeling_decoder import UniARVisualDecoder
from uniar.modeling_vision import UniARVisionModel
from uniar.turn_prompt import TurnPrompt, drawing_positions, text_positions

Figures = dict[str, Any]
GRID = (16, 16)
TOKENS = GRID[0] * GRID[1]
WRITTEN = 512
"""tokens of a text"""
STEPS = 3
"""of a rollout that are run; the others have the same shapes"""


@cache
def released() -> PlannedModel:
    return planned_model(load_recipe("configs/uniar_sft_512.yaml").model)


@cache
def simulation() -> Simulation:
    return Simulation(released())


def recipe_of(
    name: str, micro: int | None = None, checkpointing: Asked = True, guided: bool = False, writes: bool = False
) -> Recipe:
    overrides = [f"trainer.gradient_checkpointing={json.dumps(checkpointing)}"]
    overrides += [f"trainer.per_device_train_batch_size={micro}"] if micro else []
    overrides += ["rollout.episodes={default: answer}"] if writes else []
    overrides += ["rollout.guidance=guided", "rollout.guidance_scale=2.5"] if guided else []
    return load_recipe(f"configs/{name}.yaml", overrides)


def prompts(model: nn.Module, rows: int, width: int = PREFIX, written: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and positions of prefixes of several lengths, with values; of texts of so many tokens, or drawings."""
    ids, lengths = torch.full((rows, width), 1000), torch.linspace(width // 2, width, rows).long()
    mask = (torch.arange(width) >= width - lengths[:, None]).long()
    if written:
        return ids, mask, text_positions(ids, mask, written, base_model(model))
    return ids, mask, drawing_positions(ids, mask, GRID, base_model(model))


def on_gpu(counts: Counts, tensors: tuple[Tensor, ...]) -> TurnPrompt:
    return TurnPrompt(*(counts.known(tensor) for tensor in tensors))


@contextmanager
def policy_on_gpu(
    recipe: Recipe, rows: int, guided: bool, written: int = 0
) -> Iterator[tuple[Counts, nn.Module, TurnPrompt]]:
    """The recipe's policy with nothing else on the GPU, and prompts."""
    model = released().policy(recipe.model, turns_of(recipe))
    given, twin = prompts(model, rows, written=written), prompts(model, 1, 32) if guided else None
    with fake_gpu() as counts:
        moved(model)
        prompt = on_gpu(counts, given)
        if twin is not None:
            prompt = TurnPrompt(**{**vars(prompt), "unconditional": on_gpu(counts, twin)})
        yield counts, model, prompt


def figures(counts: Counts, before: int) -> Figures:
    return {
        "bytes": counts.peak - before,
        "launches": counts.launches,
        "gpu_ms": 1e3 * counts.seconds,
        "waits": dict(counts.waits),
        "copies": dict(counts.copies),
        "mixed": dict(counts.mixed),
        "cudnn_with_mask": dict(counts.cudnn_with_mask),
        "large_products": dict(counts.large_products),
        "float32_shapes": sorted(counts.float32_shapes),
    }


def difference(after: Figures, before: Figures) -> Figures:
    """What was counted between the two."""
    between = {name: Counter(after[name]) - Counter(before[name]) for name in ("waits", "copies")}
    sums = {name: after[name] - before[name] for name in ("launches", "gpu_ms")}
    return {**after, **between, **sums}


def rollout(name: str, guided: bool) -> Figures:
    """64 samples of 4 prompts; `step` counts one step of them."""
    recipe, samples, seen = recipe_of(name, guided=guided), 64, []
    original = Steps.step

    def step(steps: Steps, *how: Any) -> None:
        seen.append(figures(counts, before))
        if len(seen) <= STEPS:
            original(steps, *how)

    with policy_on_gpu(recipe, 4, guided) as (counts, model, prompt):
        shape = released().config.vision_config.code_shape
        before = counts.begin()
        with (
            patch.object(Steps, "step", step),
            torch.no_grad(),
            torch.autocast(GPU, torch.bfloat16),
        ):
            drawn = generation.rollout(
                base_model(model),
                prompt,
                torch.empty(samples, TOKENS, *shape),
                guidance_scale=2.5 if guided else None,
                return_gaps=True,
            )
        whole = figures(counts, before)
        assert drawn.bits.shape == (samples, TOKENS, *shape)
    parts = cache_parts(recipe, simulation().policy(recipe), samples, 16, PREFIX, TOKENS, guided, "rollout")
    planned = sum(part.bytes for part in parts)
    return {**whole, "planned": planned, "step": difference(seen[STEPS - 1], seen[STEPS - 2])}


def micro_batch(counts: Counts, prompt: TurnPrompt, rows: int) -> tuple[Branch, Branch | None, Tensor]:
    """What a micro-batch is fed: samples of one prompt."""
    token, owners = released().config.image_token_id, [0] * rows
    branch = Branch.of(prompt, owners, token)
    twin = None if prompt.unconditional is None else Branch.of(prompt.unconditional, owners, token)
    bits = torch.empty(rows, TOKENS, *released().config.vision_config.code_shape, dtype=torch.uint8, device=GPU)
    counts.copies.clear()  # of what a rollout does
    return branch, twin, bits


def writing(name: str) -> Figures:
    """64 texts of 4 prompts; `step` counts one step of them."""
    recipe, samples, seen = recipe_of(name, writes=True), 64, []
    with policy_on_gpu(recipe, 4, False, WRITTEN) as (counts, policy, prompt):
        model = base_model(policy)
        before = counts.begin()
        with torch.no_grad(), torch.autocast(GPU, torch.bfloat16):
            prefix = prefill(model, prompt, model.model.language_model.layers)
            owners = torch.arange(samples, device=GPU) // (samples // 4)
            steps = TextSteps(model, prefix, owners, torch.empty(samples, WRITTEN), [1], 1, 1.0)
            for _ in range(STEPS):
                seen.append(figures(counts, before))
                steps.step()
        whole = figures(counts, before)
    planned = engine_text_bytes(base_model(simulation().policy(recipe)), PREFIX, WRITTEN, samples, 4)
    return {**whole, "planned": planned, "step": difference(seen[STEPS - 1], seen[STEPS - 2])}


def written(name: str, micro: int, gradient: bool) -> Figures:
    """A micro-batch of texts replayed, with the KL of a reference; with `gradient` its backward pass too."""
    recipe, tokens, real = (
        recipe_of(name, micro, writes=True),
        torch.full((micro, WRITTEN), 1000),
        torch.ones(micro, WRITTEN).long(),
    )
    with policy_on_gpu(recipe, micro, False, WRITTEN) as (counts, policy, prompt):
        model = base_model(policy)
        if gradient:
            model.train()
            checkpoint_layers(model, simulation().kept_layers(recipe))
            for parameter in policy.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(lambda weight: setattr(weight, "grad", None))
        ids, mask, width = counts.known(tokens), counts.known(real), model.config.text_config.hidden_size
        given = {
            "input_ids": torch.cat([prompt.input_ids, ids], 1),
            "attention_mask": torch.cat([prompt.attention_mask, mask], 1),
            "position_ids": prompt.position_ids,
            "written_tokens": ids,
            "written_mask": mask.bool(),
            "prefix_names": ["one"] * micro,
            "reference_hidden": torch.empty(micro, WRITTEN, width, dtype=model.dtype, device=GPU),
        }
        before, counts.launches, counts.seconds = counts.begin(), 0, 0.0
        with torch.set_grad_enabled(gradient), torch.autocast(GPU, torch.bfloat16):
            output = policy(**given)
            loss = (output.log_probs + output.entropy + output.kl).sum()
        forward = counts.launches
        if gradient:
            loss.backward()
        found = figures(counts, before)
    return {
        **found,
        "forward": forward,
        "planned": simulation().written(recipe, micro, PREFIX, WRITTEN, gradient=gradient),
    }


def replayed(name: str, micro: int) -> Figures:
    """A micro-batch without gradient, as the reference is replayed."""
    recipe = recipe_of(name, micro)
    with policy_on_gpu(recipe, micro, False) as (counts, model, prompt):
        branch, twin, bits = micro_batch(counts, prompt, micro)
        before, counts.launches, counts.seconds = counts.begin(), 0, 0.0
        with torch.no_grad(), torch.autocast(GPU, torch.bfloat16):
            replay(model, bits, branch, twin, recipe.rollout.guidance_settings)
        found = figures(counts, before)
    return {**found, "planned": simulation().replay(recipe, micro, PREFIX, TOKENS)}


def update(name: str, micro: int, checkpointing: Asked = True, guided: bool = False) -> Figures:
    """Forward and backward pass of a micro-batch; each gradient leaves when it is complete, as under ZeRO-2."""
    recipe = recipe_of(name, micro, checkpointing, guided)
    guidance, settings = recipe.rollout.guidance_settings, recipe.algorithm.loss_settings
    with policy_on_gpu(recipe, micro, guided) as (counts, model, prompt):
        model.train()
        checkpoint_layers(base_model(model), simulation().kept_layers(recipe))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda weight: setattr(weight, "grad", None))
        branch, twin, bits = micro_batch(counts, prompt, micro)
        reference, advantages = torch.empty(bits.shape, device=GPU), torch.empty(micro, device=GPU)
        before, counts.launches, counts.seconds = counts.begin(), 0, 0.0
        with torch.autocast(GPU, torch.bfloat16):
            gap = guidance.policy_gap(replay(model, bits, branch, twin, guidance))
            inputs = LossInputs(bits=bits, gap=gap, old_gap=gap.detach(), ref_gap=reference, advantages=advantages)
            loss, _ = policy_loss(inputs, settings)
        forward = counts.launches
        loss.backward()
        found = figures(counts, before)
    return {**found, "forward": forward, "planned": simulation().update(recipe, micro, PREFIX, TOKENS)}


def decode() -> Figures:
    """16 images at 512×512; `step` counts one step of the SD3 transformer, `vae` the autoencoder."""
    recipe, seen = recipe_of("uniar_sft_512"), []
    images, dtype = recipe.decode.batch_size, torch.bfloat16
    transformer, vae = released().sd3_transformer(dtype), released().autoencoder(dtype)
    with torch.device("meta"):
        tower = UniARVisionModel._from_config(released().config.vision_config, dtype=dtype)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)

    def schedule(self: UniARVisualDecoder, steps: int, latent_shape: Any) -> FlowMatchEulerDiscreteScheduler:
        with _disable_current_modes():  # numbers from numpy, once per decode
            own = FlowMatchEulerDiscreteScheduler.from_config(self.scheduler_config)
            own.set_timesteps(steps, device="cpu")
            own.set_begin_index(0)
        own.timesteps, own.sigmas = (torch.empty(tensor.shape, device=GPU) for tensor in (own.timesteps, own.sigmas))
        return own

    def look(*_: Any) -> None:
        seen.append(figures(counts, before))

    with fake_gpu() as counts, patch.object(UniARVisualDecoder, "schedule", schedule):
        for module in (tower, transformer, vae):
            moved(module)
        prompt = transformer.config.joint_attention_dim, transformer.config.pooled_projection_dim
        embeds = torch.empty(1, DECODER_PROMPT_TOKENS, prompt[0], dtype=dtype, device=GPU)
        pooled = torch.empty(1, prompt[1], dtype=dtype, device=GPU)
        decoder = UniARVisualDecoder(tower, transformer, vae, scheduler, embeds, pooled)
        bits = torch.empty(images, TOKENS, *tower.config.code_shape, dtype=torch.uint8, device=GPU)
        before = counts.begin()
        for module in (transformer, vae.decoder):
            module.register_forward_pre_hook(look)
        decoder.decode(
            bits, 512, 512, 1.0, num_inference_steps=2, guidance_scale=1.0, noise_seeds=range(images), output_type="pt"
        )
        whole, (first, second, painting) = figures(counts, before), seen
    planned = simulation().decode(recipe, images)
    return {**whole, "planned": planned, "step": difference(second, first), "vae": difference(whole, painting)}


PHASES: dict[str, Callable[[], Figures]] = {
    "rollout of 64": partial(rollout, "uniar_sft_512", guided=False),
    "rollout of 64, guided": partial(rollout, "uniar_sft_512", guided=True),
    "replay, micro-batch 2": partial(replayed, "uniar_sft_512", 2),
    "replay, micro-batch 8": partial(replayed, "uniar_sft_512", 8),
    "update, micro-batch 2": partial(update, "uniar_sft_512", 2),
    "update, micro-batch 8": partial(update, "uniar_sft_512", 8),
    "update, micro-batch 8, 12 layers kept": partial(update, "uniar_sft_512", 8, checkpointing={"keep_layers": 12}),
    "update, micro-batch 8, all kept": partial(update, "uniar_sft_512", 8, checkpointing=False),
    "update, micro-batch 2, guided": partial(update, "uniar_sft_512", 2, guided=True),
    "update, micro-batch 2, all kept": partial(update, "uniar_sft_512", 2, checkpointing=False),
    "LoRA, micro-batch 4": partial(update, "uniar_sft_lora", 4),
    "LoRA, micro-batch 4, all kept": partial(update, "uniar_sft_lora", 4, checkpointing=False),
    "decode of 16": decode,
    "64 texts": partial(writing, "uniar_sft_512"),
    "replay of 8 texts": partial(written, "uniar_sft_512", 8, gradient=False),
    "update of 8 texts": partial(written, "uniar_sft_512", 8, gradient=True),
}


if __name__ == "__main__":
    for name in sys.argv[2:]:
        print(json.dumps({name: PHASES[name]()}), flush=True)
