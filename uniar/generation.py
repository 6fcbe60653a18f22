"""The rollout engine: draws visual tokens with every layer cached, at a cost linear in their number.

Each prompt's prefix is prefilled once and its keys and values are copied to the rows of its samples; one unconditional
row serves the batch where the prompt has it so. Then T steps run over static buffers: all shapes are fixed, a step
reads and writes at a cursor held in a tensor, and the host waits for nothing, so a step can be captured as a graph.

Shapes: U prompts · B = U·G samples · R rows (B, or 2B with guidance: conditional rows first) · P prefix positions ·
T visual tokens · L levels · S patches per token · K bits per code · H hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb

from uniar.attention import policy_kernels, without_empty_rows
from uniar.drawing_model import DrawingModel
from uniar.errors import UserError
from uniar.modeling_text import residual_stream
from uniar.processing import VisualPrompt
from uniar.quantizer import bits_to_indices


@dataclass(frozen=True)
class Rollout:
    """Drawn bits, and the raw logit gaps l₁ - l₀ they were drawn from, before guidance and temperature."""

    bits: Tensor
    """(B, T, L, S, K) uint8"""
    gap_cond: Tensor | None = None
    """(B, T, L, S, K) float32, conditional branch"""
    gap_uncond: Tensor | None = None
    """(B, T, L, S, K) float32, unconditional branch; None without guidance"""


def draw_noise(seeds: Sequence[int], tokens: int, code_shape: tuple[int, int, int]) -> Tensor:
    """Uniforms (B, T, L, S, K) float32 on the CPU, each sample's from its own seed, whoever its neighbours are."""
    return torch.stack(
        [torch.rand(tokens, *code_shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )


@torch.no_grad()
def rollout(
    model: DrawingModel,
    prompt: VisualPrompt,
    noise: Tensor,
    *,
    prompt_index: Sequence[int] | None = None,
    guidance_scale: float | None = None,
    temperature: float = 1.0,
    return_gaps: bool = False,
    show_progress: bool = False,
    memory_budget: int | None = None,
) -> Rollout:
    """Draws B images from their uniforms `noise` (B, T, L, S, K).

    Sample i belongs to prompt `prompt_index[i]`, by default i // (B / U): the same number G of samples for each prompt.
    A bit is 1 where σ(d*) > u, with d* = (d_u + s·(d_c - d_u)) / T in float32; temperature 0 is greedy.
    `guidance_scale` None runs the conditional branch alone; otherwise `prompt.unconditional` must be there, and both
    branches read the same bits. `memory_budget` (bytes) bounds caches and activations: samples are drawn in as many
    batches as it takes. In float32 the bits are the same; in bfloat16 logits depend in their last digits on the size of
    the batch, so about one bit in a thousand is another. Returned tensors live on the model's device.

    Raises UserError when the budget does not hold one sample, ValueError for noise, prompt indices or prompts that
    don't fit.
    """
    tokens, code_shape = prompt.image_token_num, model.config.vision_config.code_shape
    samples, prompts = len(noise), len(prompt)
    if prompt_index is None:
        if samples % prompts:
            raise ValueError(f"{samples} samples cannot be divided evenly over {prompts} prompts; give prompt_index.")
        prompt_index = [sample * prompts // samples for sample in range(samples)]
    if not samples or len(prompt_index) != samples or not all(0 <= owner < prompts for owner in prompt_index):
        raise ValueError(f"{samples} samples cannot be divided over {prompts} prompts as {list(prompt_index)}.")
    if noise.shape[1:] != (tokens, *code_shape):
        raise ValueError(f"noise is {tuple(noise.shape)}; it must be {(samples, tokens, *code_shape)}.")
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}; it must be 0 (greedy) or more.")
    branches = [replace(prompt, unconditional=None)]
    if guidance_scale is not None:
        if prompt.unconditional is None:
            raise ValueError("guidance needs the prompt's unconditional branch.")
        branches.append(prompt.unconditional)

    size = _batch_size(model, branches, tokens, samples, memory_budget)
    shared = [_prefill(model, branch) if len(branch) == 1 else None for branch in branches]

    def draw(batch: list[int]) -> Rollout:
        numbers = sorted({prompt_index[sample] for sample in batch})
        steps = _Steps(
            model,
            [kept or _prefill(model, branch.rows(numbers)) for kept, branch in zip(shared, branches, strict=True)],
            torch.tensor([numbers.index(prompt_index[sample]) for sample in batch], device=model.device),
            noise[batch],
            guidance_scale,
            temperature,
            keep_gaps=return_gaps,
        )
        for _ in range(tokens - 1):
            steps.sample()
            steps.advance()
            progress.update()
        steps.sample()
        progress.update()
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
    every = VisualPrompt(prefix_input_ids, attention_mask, pos_ids_all, pixel_values, input_image_grid_thw)
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


@dataclass
class _Prefix:
    """One branch's prefilled prefixes: keys and values of each layer (U, heads, P, head), last hidden state (U, H)."""

    keys: list[Tensor]
    values: list[Tensor]
    last_hidden: Tensor
    valid: Tensor
    """(U, P) bool, false on the padding"""
    drawn_positions: Tensor
    """(3, U, T)"""

    @property
    def width(self) -> int:
        return self.valid.shape[1]


def _layers(model: DrawingModel) -> list[nn.Module]:
    return [*model.model.language_model.layers, *model.visual_decoder_layers]


def _prefill(model: DrawingModel, prompt: VisualPrompt) -> _Prefix:
    rows, width = prompt.input_ids.shape
    backbone = model.model
    added: list[Tensor] = []
    if prompt.pixel_values is None:
        if bool((prompt.input_ids == model.config.image_token_id).any()):
            raise ValueError("the prefix holds image tokens and came without pixel_values.")
        embeds = backbone.get_input_embeddings()(prompt.input_ids)
    else:
        bits = backbone.visual.encode(prompt.pixel_values, prompt.image_grid_thw)
        main, *deepstack = backbone.visual.language_features(bits)
        embeds, image_mask = backbone.embed_images(prompt.input_ids, [main])
        added = [
            torch.zeros_like(embeds).masked_scatter(image_mask[..., None], features.to(embeds.dtype))
            for features in deepstack[: len(backbone.language_model.layers)]
        ]
    valid = prompt.attention_mask.bool()
    slots = torch.arange(width, device=embeds.device)
    visible = without_empty_rows((slots[:, None] >= slots) & valid[:, None, :])
    rotary = backbone.language_model.rotary_emb(embeds, prompt.position_ids[:, :, :width])
    keys, values = _empty_cache(model, rows, width), _empty_cache(model, rows, width)
    hidden = _run_layers(_layers(model), embeds, rotary, added, keys, values, slots, visible[:, None])
    return _Prefix(keys, values, hidden[:, -1], valid, prompt.position_ids[:, :, width:])


def _empty_cache(model: DrawingModel, rows: int, slots: int) -> list[Tensor]:
    attention = model.config.text_config
    shape = (rows, attention.num_key_value_heads, slots, attention.head_dim)
    return [torch.zeros(shape, dtype=model.dtype, device=model.device) for _ in _layers(model)]


@policy_kernels()
def _run_layers(
    layers: Sequence[nn.Module],
    hidden: Tensor,
    rotary: tuple[Tensor, Tensor],
    deepstack: Sequence[Tensor],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    slots: Tensor,
    visible: Tensor,
) -> Tensor:
    """Runs Q new positions (rows, Q, H) through all layers; their keys and values go to `slots` (Q,) of the caches.

    `visible` (rows, 1, Q, slots) says which cache slots each new position attends to. Attention is torch's own fused
    one whichever implementation the model replays with: flash-attention has nothing to gain at one query per row.
    """
    rows, queries, _ = hidden.shape
    hidden = residual_stream(hidden, layers)
    for number, layer in enumerate(layers):
        attention, x = layer.self_attn, layer.input_layernorm(hidden)
        heads = (rows, queries, -1, attention.head_dim)
        query = attention.q_norm(attention.q_proj(x).view(heads)).transpose(1, 2)
        key = attention.k_norm(attention.k_proj(x).view(heads)).transpose(1, 2)
        value = attention.v_proj(x).view(heads).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *rotary)
        keys[number].index_copy_(2, slots, key.to(keys[number].dtype))
        values[number].index_copy_(2, slots, value.to(values[number].dtype))
        # Query heads that share a key head become further queries of it: nothing is repeated in memory.
        shared = attention.num_key_value_groups
        attended = F.scaled_dot_product_attention(
            query.reshape(rows, -1, shared * queries, attention.head_dim),
            keys[number],
            values[number],
            attn_mask=visible if queries == 1 else visible.repeat(1, 1, shared, 1),
            scale=attention.scaling,
        )
        attended = attended.reshape(rows, -1, queries, attention.head_dim).transpose(1, 2)
        hidden = hidden + attention.o_proj(attended.reshape(rows, queries, -1))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        if number < len(deepstack):
            hidden = hidden + deepstack[number]
    return hidden


class _Steps:
    """The static buffers of one batch of samples, and the two halves of a step: `sample` and `advance`."""

    def __init__(
        self,
        model: DrawingModel,
        prefixes: Sequence[_Prefix],
        prompt_index: Tensor,
        noise: Tensor,
        guidance_scale: float | None,
        temperature: float,
        *,
        keep_gaps: bool,
    ) -> None:
        self.model, self.layers, self.guidance_scale = model, _layers(model), guidance_scale
        device, samples, tokens = model.device, len(prompt_index), noise.shape[1]
        rows = samples * len(prefixes)
        self.prefix_width = max(prefix.width for prefix in prefixes)
        slots = self.prefix_width + tokens
        self.keys, self.values = _empty_cache(model, rows, slots), _empty_cache(model, rows, slots)
        self.valid = torch.ones(rows, slots, dtype=torch.bool, device=device)
        hidden, positions = [], []
        for number, prefix in enumerate(prefixes):
            # One unconditional row may stand for all prompts.
            source = prompt_index if len(prefix.valid) > 1 else torch.zeros_like(prompt_index)
            start, stop = self.prefix_width - prefix.width, self.prefix_width
            mine = slice(number * samples, (number + 1) * samples)
            for cache, filled in ((self.keys, prefix.keys), (self.values, prefix.values)):
                for layer, tensor in zip(cache, filled, strict=True):
                    layer[mine, :, start:stop] = tensor[source]
            self.valid[mine, :start] = False
            self.valid[mine, start:stop] = prefix.valid[source]
            hidden.append(prefix.last_hidden[source])
            positions.append(prefix.drawn_positions[:, source])
        self.hidden = torch.cat(hidden)[:, None]
        cos, sin = model.model.language_model.rotary_emb(self.keys[0], torch.cat(positions, dim=1))
        self.cos, self.sin = cos.transpose(0, 1), sin.transpose(0, 1)
        # d* / T > logit(u), with T on the other side: at temperature 0 that is d* > 0, the greedy bit.
        below_one = 1 - torch.finfo(torch.float32).eps / 2
        uniforms = noise.to(device, torch.float32).clamp(torch.finfo(torch.float32).tiny, below_one).transpose(0, 1)
        self.thresholds = torch.logit(uniforms) * temperature
        self.bits = torch.empty(*self.thresholds.shape, dtype=torch.uint8, device=device)
        self.gaps = torch.empty(len(prefixes), *self.thresholds.shape, device=device) if keep_gaps else None
        self.slots = torch.arange(slots, device=device)
        self.cursor = torch.zeros(1, dtype=torch.long, device=device)

    def sample(self) -> None:
        """Hidden states → the bits of the visual token under the cursor."""
        logits = self.model.visual_logits(self.hidden[:, 0]).float()
        raw = logits[..., 1] - logits[..., 0]
        if self.guidance_scale is None:
            raw = gap = raw[None]
        else:
            raw = raw.unflatten(0, (2, -1))
            gap = raw[1] + self.guidance_scale * (raw[0] - raw[1])
        threshold = self.thresholds.index_select(0, self.cursor)
        self.bits.index_copy_(0, self.cursor, (gap.view_as(threshold) > threshold).to(torch.uint8))
        if self.gaps is not None:
            self.gaps.index_copy_(1, self.cursor, raw[:, None])

    def advance(self) -> None:
        """Feeds the token under the cursor to both branches, and moves the cursor to the next."""
        drawn = self.bits.index_select(0, self.cursor)[0]
        branches = len(self.hidden) // len(drawn)
        main, *deepstack = (f.repeat(branches, 1)[:, None] for f in self.model.model.visual.language_features(drawn))
        deepstack = deepstack[: len(self.model.model.language_model.layers)]  # none behind visual decoder layers
        slot = self.cursor + self.prefix_width
        visible = (self.valid & (self.slots <= slot))[:, None, None]
        rotary = (self.cos.index_select(0, self.cursor)[0][:, None], self.sin.index_select(0, self.cursor)[0][:, None])
        hidden = _run_layers(self.layers, main, rotary, deepstack, self.keys, self.values, slot, visible)
        if self.hidden.dtype == hidden.dtype:
            self.hidden.copy_(hidden)
        else:  # only the first time: under autocast a prefix ends in the embeddings' precision, a step in autocast's
            self.hidden = hidden
        self.cursor += 1

    def result(self) -> Rollout:
        gaps = [] if self.gaps is None else [gap.transpose(0, 1).contiguous() for gap in self.gaps]
        return Rollout(self.bits.transpose(0, 1).contiguous(), *gaps)


def _batch_size(
    model: DrawingModel,
    branches: Sequence[VisualPrompt],
    tokens: int,
    samples: int,
    memory_budget: int | None,
) -> int:
    """How many samples fit the budget at once."""
    if memory_budget is None:
        return samples
    prefix = max(branch.input_ids.shape[1] for branch in branches)
    given = branches[0].pixel_values
    patches = 0 if given is None else -(-len(given) // len(branches[0]))
    needed = sample_bytes(model, prefix, tokens, len(branches), patches)
    if needed > memory_budget:
        raise UserError(
            f"one sample's rollout needs {needed / 2**20:.1f} MiB of caches and activations, the memory budget is "
            f"{memory_budget / 2**20:.1f} MiB (rollout.memory_budget_gb of a recipe, --memory-budget-gb); allow "
            "more or draw a smaller image."
        )
    return min(samples, memory_budget // needed)


def sample_bytes(model: DrawingModel, prefix: int, tokens: int, branches: int, patches: int = 0) -> int:
    """Bytes that a sample takes in the engine when no other shares its prompt, from above.

    Keys and values of the prefix, and then either what a layer holds during prefill (of the vision tower, over the
    `patches` of images to edit, or of the backbone), or keys and values of all slots, the thresholds, bits and gaps,
    and what a step holds.
    """
    text, vision = model.config.text_config, model.config.vision_config
    size = torch.finfo(model.dtype).bits // 8
    levels, spatial, bsq_dim = vision.code_shape
    bits = levels * spatial * bsq_dim
    slot = 2 * len(_layers(model)) * text.num_key_value_heads * text.head_dim * size
    position = (4 * text.intermediate_size + (8 + levels) * text.hidden_size) * size
    mask = text.num_attention_heads // text.num_key_value_heads * prefix * (1 + size)
    projection = 2 * vision.bsq_hidden_dim + 6 * vision.hidden_size
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    patch = (4 * vision.intermediate_size + (8 + 2 * levels) * vision.hidden_size + projection) * size + 4 * pixels
    step = position + 2 * bits * (size + 8) + levels * spatial * projection * size
    drawn = tokens * bits * (4 + 1 + 8 + 8 * branches)
    return branches * prefix * slot + max(
        patches * patch + prefix * (position + mask), branches * ((prefix + tokens) * slot + step) + drawn
    )
