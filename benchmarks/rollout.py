"""The rollout engine against a plain loop that recomputes the visual decoder at every step.

Both run in one process on the same random weights, prompts and noise, and have to draw the same bits. The plain loop
caches the backbone and runs the visual decoder over the whole sequence for each visual token, so its cost grows with
the square of their number. Also measured: what a late step of the engine costs next to an early one, and the floor
that this machine's memory bandwidth and arithmetic set for a step.

    python benchmarks/rollout.py                      # 512×512, hidden 256, 8 + 4 layers, 8 rows, float32, 2 threads
    python benchmarks/rollout.py --size 256 --repeats 1
    python benchmarks/rollout.py --compiled           # the compiled engine too, which must draw the same bits

Exits with 1 where bits differ by more than rounding explains, the engine is less than 4 times as fast, or the late step
costs over 1.3 times the early one. Needs no checkpoint. Times are the least of the repeats, which alternate between
what is compared.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from uniar.configuration_uniar import UniARConfig
from uniar.engine.prefix import prefill
from uniar.engine.steps import Steps
from uniar.generation import Rollout, draw_noise, rollout
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.turn_prompt import TurnPrompt, append_image_tokens

SPEEDUP = 4.0
LATE_STEP = 1.3
ROUNDING = 1e-3
"""A bit whose gap is this near its threshold may fall either way: the two sum in different orders."""


@dataclass(frozen=True)
class Sizes:
    """Of the random model and of what it draws; all else follows the released proportions."""

    hidden: int = 256
    layers: int = 8
    decoder_layers: int = 4
    height: int = 512
    width: int = 512
    samples: int = 4
    """each takes two rows: with and without the prompt"""
    prefix: int = 64

    @property
    def grid(self) -> tuple[int, int]:
        return self.height // 32, self.width // 32

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]


def build_model(sizes: Sizes) -> UniARForConditionalGeneration:
    """Released proportions (MLP 3 × hidden, 4 query heads per key head, 1024 bits per token), random float32
    weights."""
    head_dim = 32
    text = {
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "intermediate_size": 3 * sizes.hidden,
        "num_attention_heads": sizes.hidden // head_dim,
        "num_key_value_heads": max(sizes.hidden // head_dim // 4, 1),
        "head_dim": head_dim,
        "vocab_size": 512,
        "rope_scaling": {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True},
        "rope_theta": 5e6,
    }
    vision = {
        "depth": 4,
        "hidden_size": sizes.hidden // 4,
        "num_heads": 4,
        "intermediate_size": sizes.hidden,
        "num_position_embeddings": 256,
        "out_hidden_size": sizes.hidden,
        "deepstack_visual_indexes": [0, 1, 2],
        "bsq_dim": 64,
        "bsq_hidden_dim": 2 * sizes.hidden,
    }
    config = UniARConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=500,
        video_token_id=501,
        vision_start_token_id=502,
        vision_end_token_id=503,
        vistok_pred=True,
        vistok_pred_layernorm=True,
        visual_transformer_decoder=True,
        visual_transformer_decoder_depth=sizes.decoder_layers,
    )
    model = UniARForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:  # so that gaps are about as large as a trained model's
                torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5 if "embed" not in name else 0.5)
    return model


def build_prompt(model: UniARForConditionalGeneration, sizes: Sizes) -> TurnPrompt:
    """One text prompt a sample, of several lengths and left-padded, and the one unconditional row they share."""

    def random_rows(rows: int, shortest: int) -> TurnPrompt:
        ids = torch.randint(10, 400, (rows, sizes.prefix))
        lengths = torch.linspace(shortest, sizes.prefix, rows).long()
        mask = (torch.arange(sizes.prefix) >= sizes.prefix - lengths[:, None]).long()
        grids = torch.tensor([[1, 2 * sizes.grid[0], 2 * sizes.grid[1]]]).expand(rows, 3)
        every, mask_of_all = append_image_tokens(ids, mask, sizes.tokens, model.config.image_token_id)
        return TurnPrompt(ids, mask, model.model.rotary_positions(every, mask_of_all, grids))

    conditional = random_rows(sizes.samples, sizes.prefix // 2)
    return TurnPrompt(**{**vars(conditional), "unconditional": random_rows(1, sizes.prefix // 4)})


@torch.no_grad()
def plain_rollout(
    model: UniARForConditionalGeneration, prompt: TurnPrompt, noise: Tensor, scale: float, follow: Tensor
) -> tuple[Tensor, int]:
    """Step by step: backbone from its cache, visual decoder over all positions so far.

    Goes on with the bits `follow` (B, T, L, S, K) at each step, so that one bit on the edge does not change all after
    it. Returns the bits it would have drawn itself, and how many of those that differ were not on the edge.
    """
    text, samples = model.model.language_model, len(prompt)
    unconditional = prompt.unconditional.rows([0] * samples)
    ids = torch.cat([prompt.input_ids, unconditional.input_ids])
    mask = torch.cat([prompt.attention_mask, unconditional.attention_mask]).bool()
    positions = torch.cat([prompt.position_ids, unconditional.position_ids], 1)
    length, tokens = ids.shape[1], noise.shape[1]
    every = torch.arange(length + tokens)
    padding = torch.nn.functional.pad(mask, (0, tokens), value=True)
    visible = (every[:, None] >= every) & (padding[:, None, None] | torch.eye(length + tokens, dtype=torch.bool))

    cache = DynamicCache(config=model.config.text_config)
    embeds, deepstack, states = text.embed_tokens(ids), [], []
    drawn, clear = [], 0
    for step in range(tokens):
        end = length + step
        start = end - embeds.shape[1]
        rotary = text.rotary_emb(embeds, positions[:, :, start:end])
        hidden = embeds
        for number, layer in enumerate(text.layers):
            hidden = layer(
                hidden,
                attention_mask=visible[:, :, start:end, :end],
                position_embeddings=rotary,
                past_key_values=cache,
            )
            if number < len(deepstack):
                hidden = hidden + deepstack[number]
        states.append(hidden)
        hidden = torch.cat(states, 1)
        rotary = text.rotary_emb(hidden, positions[:, :, :end])
        for layer in model.visual_decoder_layers:
            hidden = layer(hidden, attention_mask=visible[:, :, :end, :end], position_embeddings=rotary)

        logits = model.visual_logits(hidden[:, -1])
        cond, uncond = (logits[..., 1] - logits[..., 0]).chunk(2)
        margin = uncond + scale * (cond - uncond) - torch.logit(noise[:, step])
        bits = (margin > 0).to(torch.uint8)
        clear += int(((bits != follow[:, step]) & (margin.abs() > ROUNDING)).sum())
        drawn.append(bits)
        main, *levels = model.model.visual.language_features(follow[:, step])
        embeds, deepstack = main.repeat(2, 1)[:, None], [level.repeat(2, 1)[:, None] for level in levels]
    return torch.stack(drawn, 1), clear


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def alternate(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The least time of each over `repeats` rounds of all."""
    rounds = [{name: seconds(function) for name, function in functions.items()} for _ in range(repeats)]
    return {name: min(times[name] for times in rounds) for name in functions}


@torch.no_grad()
def step_seconds(
    model: UniARForConditionalGeneration, prompt: TurnPrompt, noise: Tensor, scale: float, at: tuple[int, int]
) -> dict[int, float]:
    """What the engine's step takes with its cursor at two places, in turns."""
    branches = [prompt, prompt.unconditional]
    prefixes = [prefill(model, branch) for branch in branches]
    steps = Steps(model, prefixes, torch.arange(len(prompt)), noise, scale, 1.0, keep_gaps=True)

    def four_steps(token: int) -> None:
        for _ in range(4):
            steps.cursor.fill_(token)
            steps.step()

    for token in at:
        four_steps(token)
    times = alternate({str(token): lambda token=token: four_steps(token) for token in at}, repeats=5)
    return {token: times[str(token)] / 4 for token in at}


@dataclass(frozen=True)
class Floor:
    """What a step cannot be faster than here."""

    megabytes: float
    """weights and caches that a step reads"""
    megaflops: float
    bandwidth: float
    """GB/s of reading, measured"""
    rate: float
    """GFLOP/s of a large matrix product, measured"""

    @property
    def milliseconds(self) -> float:
        return max(self.megabytes / self.bandwidth, self.megaflops / self.rate)


def measure_floor(model: UniARForConditionalGeneration, sizes: Sizes) -> Floor:
    visual, rows, text = model.model.visual, 2 * sizes.samples, model.config.text_config
    layers = [*model.model.language_model.layers, *model.visual_decoder_layers, model.output_layer_vistok]
    per_row = sum(p.numel() for layer in layers for p in layer.parameters())
    merging = sum(p.numel() for m in (visual.merger, *visual.deepstack_merger_list) for p in m.parameters())
    features = sum(
        p.numel() for name, m in visual.named_children() if "bsq_output_proj" in name for p in m.parameters()
    )
    slots = sizes.prefix + sizes.tokens
    cached = len(layers[:-1]) * rows * slots * text.num_key_value_heads * text.head_dim * 2
    groups = text.num_attention_heads // text.num_key_value_heads
    flops = 2 * (rows * per_row + sizes.samples * (merging + 4 * features) + groups * cached)

    side = 1024
    big, a, b = torch.ones(2**26), torch.randn(side, side), torch.randn(side, side)
    times = alternate({"reading": big.sum, "product": lambda: a @ b}, repeats=5)
    return Floor(
        megabytes=4 * (per_row + merging + features + cached) / 1e6,
        megaflops=flops / 1e6,
        bandwidth=4 * big.numel() / times["reading"] / 1e9,
        rate=2 * side**3 / times["product"] / 1e9,
    )


def compare(
    model: UniARForConditionalGeneration, sizes: Sizes, scale: float, repeats: int, seed: int, compiled: bool = False
) -> tuple[dict[str, float], int, int]:
    """(seconds of each, bits that differ, those of them that rounding does not explain). Compiling is not counted."""
    prompt = build_prompt(model, sizes)
    noise = draw_noise(range(seed, seed + sizes.samples), sizes.tokens, model.config.vision_config.code_shape)
    cached: list[Rollout] = []
    plain: list[tuple[Tensor, int]] = []
    engines: dict[str, Callable[[], object]] = {
        "cached": lambda: cached.append(rollout(model, prompt, noise, guidance_scale=scale)),
        "plain": lambda: plain.append(plain_rollout(model, prompt, noise, scale, cached[0].bits)),
    }
    others: list[Rollout] = []
    if compiled:
        engines["compiled"] = lambda: others.append(
            rollout(model, prompt, noise, guidance_scale=scale, engine="compiled")
        )
        engines["compiled"]()
    times = alternate(engines, repeats)
    bits, clear = plain[0]
    differ = sum(int((found != cached[0].bits).sum()) for found in (bits, *(other.bits for other in others[:1])))
    return times, differ, clear


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8, help="of the backbone")
    parser.add_argument("--decoder-layers", type=int, default=4, help="of the visual decoder")
    parser.add_argument("--size", type=int, default=512, help="height and width in pixels, a multiple of 32")
    parser.add_argument("--rows", type=int, default=8, help="two a sample: with and without the prompt")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2, help="of both whole rollouts, alternating")
    parser.add_argument("--compiled", action="store_true", help="measure the compiled engine too")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    sizes = Sizes(
        hidden=arguments.hidden,
        layers=arguments.layers,
        decoder_layers=arguments.decoder_layers,
        height=arguments.size,
        width=arguments.size,
        samples=arguments.rows // 2,
    )
    model = build_model(sizes)
    early, late = min(10, sizes.tokens // 4), sizes.tokens - 6

    times, differ, clear = compare(
        model, sizes, arguments.guidance, arguments.repeats, arguments.seed, arguments.compiled
    )
    prompt = build_prompt(model, sizes)
    noise = draw_noise(range(sizes.samples), sizes.tokens, model.config.vision_config.code_shape)
    steps = step_seconds(model, prompt, noise, arguments.guidance, (early, late))
    floor = measure_floor(model, sizes)
    speedup, growth = times["plain"] / times["cached"], steps[late] / steps[early]
    reads, computes = floor.megabytes / floor.bandwidth, floor.megaflops / floor.rate
    lines = [
        ("plain loop, seconds", f"{times['plain']:.2f}"),
        ("cached engine, seconds", f"{times['cached']:.2f}"),
        (f"times as fast (at least {SPEEDUP:g})", f"{speedup:.1f}"),
        (f"step at token {early}, ms", f"{steps[early] * 1e3:.2f}"),
        (f"step at token {late}, ms", f"{steps[late] * 1e3:.2f}"),
        (f"late over early (at most {LATE_STEP:g})", f"{growth:.2f}"),
        ("floor of a step, ms", f"{floor.milliseconds:.2f}"),
        (f"  reading {floor.megabytes:.0f} MB at {floor.bandwidth:.1f} GB/s, ms", f"{reads:.2f}"),
        (f"  {floor.megaflops:.0f} MFLOP at {floor.rate:.0f} GFLOP/s, ms", f"{computes:.2f}"),
        (f"bits that differ, of {noise.numel()}", f"{differ} ({clear} beyond rounding)"),
    ]
    if arguments.compiled:
        ratio = times["cached"] / times["compiled"]
        lines[2:2] = [
            ("compiled engine, seconds", f"{times['compiled']:.2f}"),
            ("times as fast as the cached engine", f"{ratio:.2f}"),
        ]
    print(
        f"{sizes.tokens} tokens, hidden {sizes.hidden}, {sizes.layers} + {sizes.decoder_layers} layers, "
        f"{2 * sizes.samples} rows, float32, {arguments.threads} threads, torch {torch.__version__}"
    )
    for name, value in lines:
        print(f"{name:<52} {value:>12}")
    return int(clear > 0 or speedup < SPEEDUP or growth > LATE_STEP)


if __name__ == "__main__":
    sys.exit(main())
