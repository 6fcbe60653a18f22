"""The rollout: draws visual tokens with every layer cached, at a cost linear in their number.

Each prompt's prefix is prefilled once and its keys and values are copied to the rows of its samples; one unconditional
row serves the batch where the prompt has it so. Then T steps run over static buffers (uniar/engine/).

Shapes: U prompts · B = U·G samples · T visual tokens · L levels · S patches per token · K bits per code.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from uniar.drawing_model import DrawingModel
from uniar.engine import Engine
from uniar.engine.memory import fitting, sample_bytes
from uniar.engine.prefix import prefill
from uniar.engine.running import check_engine, run
from uniar.engine.steps import Rollout, Steps
from uniar.quantizer import bits_to_indices
from uniar.turn_prompt import TurnPrompt, owners


def draw_noise(seeds: Sequence[int], tokens: int, code_shape: tuple[int, int, int]) -> Tensor:
    """Uniforms (B, T, L, S, K) float32 on the CPU, each sample's from its own seed, whoever its neighbours are."""
    return torch.stack(
        [torch.rand(tokens, *code_shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )


@torch.no_grad()
def rollout(
    model: DrawingModel,
    prompt: TurnPrompt,
    noise: Tensor,
    *,
    prompt_index: Sequence[int] | None = None,
    guidance_scale: float | None = None,
    temperature: float = 1.0,
    return_gaps: bool = False,
    show_progress: bool = False,
    memory_budget: int | None = None,
    engine: Engine = "eager",
) -> Rollout:
    """Draws B images from their uniforms `noise` (B, T, L, S, K).

    Sample i belongs to prompt `prompt_index[i]`, by default i // (B / U): the same number G of samples for each prompt.
    A bit is 1 where σ(d*) > u, with d* = (d_u + s·(d_c - d_u)) / T in float32; temperature 0 is greedy.
    `guidance_scale` None runs the conditional branch alone; otherwise `prompt.unconditional` must be there, and both
    branches read the same bits. `memory_budget` (bytes) bounds caches and activations: samples are drawn in as many
    batches as it takes. In float32 the bits are the same; in bfloat16 logits depend in their last digits on the size of
    the batch, so about one bit in a thousand is another. `engine` says how steps
    are run (uniar/engine/running.py). Returned tensors live on the model's device.

    Raises UserError for an engine that the device has not and when the budget does not hold one sample, ValueError for
    noise, prompt indices or prompts that don't fit.
    """
    tokens, code_shape = prompt.new_tokens, model.config.vision_config.code_shape
    samples = len(noise)
    prompt_index = owners(prompt, samples, prompt_index)
    if noise.shape[1:] != (tokens, *code_shape):
        raise ValueError(f"noise is {tuple(noise.shape)}; it must be {(samples, tokens, *code_shape)}.")
    check_engine(engine, model.device)
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}; it must be 0 (greedy) or more.")
    branches = [replace(prompt, unconditional=None)]
    if guidance_scale is not None:
        if prompt.unconditional is None:
            raise ValueError("guidance needs the prompt's unconditional branch.")
        branches.append(prompt.unconditional)

    width = max(branch.input_ids.shape[1] for branch in branches)
    size = fitting(sample_bytes(model, width, tokens, len(branches)), samples, memory_budget, "draw a smaller image")
    shared = [prefill(model, branch) if len(branch) == 1 else None for branch in branches]

    def draw(batch: list[int]) -> Rollout:
        numbers = sorted({prompt_index[sample] for sample in batch})
        steps = Steps(
            model,
            [kept or prefill(model, branch.rows(numbers)) for kept, branch in zip(shared, branches, strict=True)],
            torch.tensor([numbers.index(prompt_index[sample]) for sample in batch], device=model.device),
            noise[batch],
            guidance_scale,
            temperature,
            keep_gaps=return_gaps,
        )

        def drawn() -> bool:
            progress.update()  # which returns whether it has drawn its bar
            return False

        run(steps, engine, drawn)
        return steps.result()

    # A prompt's samples go together: its prefix is prefilled once, or twice where a batch ends inside them.
    order = sorted(range(samples), key=prompt_index.__getitem__)
    batches = [order[start : start + size] for start in range(0, samples, size)]
    with tqdm(total=len(batches) * tokens, desc="visual tokens", disable=not show_progress) as progress:
        parts = [draw(batch) for batch in batches]
    joined = [[getattr(part, name) for part in parts] for name in ("bits", "gap_cond", "gap_uncond")]
    back = torch.tensor(order, device=model.device).argsort()
    return Rollout(*(None if tensors[0] is None else torch.cat(tensors)[back] for tensors in joined))


def generate_visual(
    model: DrawingModel,
    prefix_input_ids: Tensor,
    attention_mask: Tensor,
    pos_ids_all: Tensor,
    image_token_num: int,
    *,
    pixel_values: Tensor | None,
    input_image_grid_thw: Tensor | None,
    temperature: float,
    cfg: float,
    show_progress: bool,
    return_raw_codes: bool,
    generator: torch.Generator | None,
    memory_budget: int | None,
) -> Tensor:
    """The engine behind the model card's `generate_visual`: 2B rows in, B images out."""
    rows = len(prefix_input_ids)
    if rows % 2:
        raise ValueError(
            f"prefix_input_ids have {rows} rows; generate_visual takes conditional, then unconditional rows."
        )
    half = rows // 2
    bits, counts = None, (prefix_input_ids == model.config.image_token_id).sum(1)
    if pixel_values is not None:
        with torch.no_grad():
            bits = model.model.visual.encode(pixel_values, input_image_grid_thw)
    every = TurnPrompt(prefix_input_ids, attention_mask, pos_ids_all, bits, tuple(counts.tolist()))
    guided = cfg > 1
    prompt = replace(every.rows(range(half)), unconditional=every.rows(range(half, rows)) if guided else None)
    shape = (half, image_token_num, *model.config.vision_config.code_shape)
    device = model.device if generator is None else generator.device
    drawn = rollout(
        model,
        prompt.to(model.device),
        torch.rand(shape, generator=generator, device=device),
        guidance_scale=cfg if guided else None,
        temperature=temperature,
        show_progress=show_progress,
        memory_budget=memory_budget,
    )
    return drawn.bits if return_raw_codes else bits_to_indices(drawn.bits)
