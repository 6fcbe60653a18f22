"""What one GPU does with the released model, in ten minutes at most: a table for benchmarks/RESULTS.md.

    python benchmarks/gpu.py                          # random weights of the released size, 64 samples at 512×512
    python benchmarks/gpu.py --checkpoint PATH        # a checkpoint's sizes; its weights are not read
    python benchmarks/gpu.py --preset nano --device cpu --samples 2 --size 64

Golden vectors of the reference in float32 and bfloat16; bandwidth and arithmetic of this GPU; weights that come from
the machine's memory; a rollout with each engine, per token, beside the least that reading its weights and caches takes;
a decode; one update with LoRA and one of all weights, on as many of the model's text layers as fit; and the memory of
each beside what `uniar-rl plan` computes.
Weights are random: no time depends on them. Exits with 1 where a golden vector is missed.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

# The folder of this script comes first, where rewards.py would be taken for the package.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

from rl.algorithm.losses import LossInputs, policy_loss  # noqa: E402
from rl.config.model import ModelSection  # noqa: E402
from rl.config.recipe import load_recipe  # noqa: E402
from rl.config.sections import Recipe  # noqa: E402
from rl.distributed.offloaded_weights import OffloadedWeights  # noqa: E402
from rl.plan.caches import cache_bytes, cache_parts  # noqa: E402
from rl.plan.estimate import GIB, PREFIX  # noqa: E402
from rl.plan.planned_model import PlannedModel, planned_model  # noqa: E402
from rl.plan.simulation import DECODER_PROMPT_TOKENS, Simulation, alike_of, checkpoint_layers  # noqa: E402
from rl.policy.loading import base_model  # noqa: E402
from rl.policy.replay import Branch, replay  # noqa: E402
from uniar.compiling import compile_options, compiling  # noqa: E402
from uniar.engine import Engine  # noqa: E402
from uniar.generation import rollout  # noqa: E402
from uniar.modeling_uniar import UniARForConditionalGeneration  # noqa: E402
from uniar.turn_prompt import TurnPrompt, drawing_positions  # noqa: E402

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "bsq8"
ENGINES: tuple[Engine, ...] = ("eager", "compiled", "graph")
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.06}
"""of logits: float32 as docs/architecture.md has it"""

Row = tuple[str, str, str]
"""what, measured, beside what"""


class Gpu:
    """The device, or a CPU in its place, and its clock."""

    def __init__(self, name: str) -> None:
        self.device = torch.device(name)
        self.is_cuda = self.device.type == "cuda"

    def timed(self, function: Callable[[], Any]) -> tuple[Any, float, int | None]:
        """(result, seconds, bytes at the peak beyond those before; None on a CPU)."""
        before = None
        if self.is_cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        started = time.perf_counter()
        found = function()
        if self.is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        return found, seconds, None if before is None else torch.cuda.max_memory_allocated() - before

    def timed_alone(self, function: Callable[[], Any]) -> float:
        """Seconds of what the host waits for anyhow, whatever else the device is at."""
        started = time.perf_counter()
        function()
        return time.perf_counter() - started

    def free(self) -> int:
        """Bytes that can be had; a CPU is taken to have 4 GiB."""
        if not self.is_cuda:
            return 4 * GIB
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16)

    def filled(self, module: nn.Module) -> nn.Module:
        """A module of the meta device with random weights, of a size that keeps numbers finite."""
        module.to_empty(device=self.device)
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                if tensor.is_floating_point():
                    tensor.normal_(std=tensor.shape[-1] ** -0.5) if tensor.ndim > 1 else tensor.fill_(1.0)
        return module


def rates(gpu: Gpu) -> tuple[float, float]:
    """(bytes per second of reading, FLOP per second of a bfloat16 product), the best of five."""
    large = torch.ones((2**30 if gpu.is_cuda else 2**25,), dtype=torch.bfloat16, device=gpu.device)
    side = 8192 if gpu.is_cuda else 512
    square = torch.randn(side, side, device=gpu.device).bfloat16()
    reading = min(gpu.timed(large.sum)[1] for _ in range(5))
    product = min(gpu.timed(lambda: square @ square)[1] for _ in range(5))
    return large.nbytes / reading, 2 * side**3 / product


def copying(gpu: Gpu) -> list[Row]:
    """Of a reference that waits in the machine's memory: how fast it comes, and whether the small copies with which the
    decoder begins wait for all of it."""
    elements = 2**28 if gpu.is_cuda else 2**18
    model = nn.ParameterList(torch.ones(elements, dtype=torch.bfloat16) for _ in range(16))
    weights, small = OffloadedWeights(model.requires_grad_(False), gpu.device), torch.ones(2**20)

    def come() -> None:
        weights.use()
        weights.release()

    def small_copy() -> Tensor:
        return small.to(gpu.device)

    size, seconds = sum(weight.nbytes for weight in model), min(gpu.timed(come)[1] for _ in range(3))
    alone = min(gpu.timed_alone(small_copy) for _ in range(3))
    weights.fetch()
    waited = gpu.timed_alone(small_copy)
    weights.release()
    return [
        (f"{size / 1e9:.1f} GB of weights from the machine's memory, GB/s", f"{size / seconds / 1e9:.1f}", ""),
        ("a copy of 4 MB behind them, ms", f"{waited * 1e3:.2f}", f"alone: {alone * 1e3:.2f}"),
    ]


@torch.no_grad()
def golden(gpu: Gpu) -> list[tuple[str, float, float]]:
    """(type, largest difference of logits, tolerance) of the reference's teacher-forced vectors."""
    vectors, found = load_file(GOLDEN / "vistok_forward.safetensors"), []
    names = ("input_ids", "attention_mask", "image_grid_thw")
    inputs = {name: vectors[name].to(gpu.device) for name in names}
    for dtype, tolerance in TOLERANCES.items():
        model = UniARForConditionalGeneration.from_pretrained(GOLDEN / "ckpt", dtype=dtype).to(gpu.device)
        codes = vectors["codes"].to(gpu.device)
        logits = model(**inputs, online_rollout_codes=codes, is_vistok_pred=True).logits
        apart = (logits.float().cpu() - vectors["logits"].float()).abs().max().item()
        found.append((str(dtype).removeprefix("torch."), apart, tolerance))
    return found


def prompts(model: nn.Module, rows: int, grid: tuple[int, int], device: torch.device) -> TurnPrompt:
    """Prefixes of several lengths; which tokens they have is no matter."""
    ids, lengths = torch.full((rows, PREFIX), 7), torch.linspace(PREFIX // 2, PREFIX, rows).long()
    mask = (torch.arange(PREFIX) >= PREFIX - lengths[:, None]).long()
    return TurnPrompt(ids, mask, drawing_positions(ids, mask, grid, base_model(model))).to(device)


class Bench:
    """The measurements on one model's sizes."""

    def __init__(self, gpu: Gpu, model: PlannedModel, recipe: Recipe, samples: int, size: int) -> None:
        self.gpu, self.model, self.recipe, self.samples, self.size = gpu, model, recipe, samples, size
        side = size // model.config.vision_config.pixels_per_token
        self.grid, self.tokens = (side, side), side * side
        self.code_shape = model.config.vision_config.code_shape

    def cut(self, layers: int) -> PlannedModel:
        """The model with so many text layers."""
        settings = self.model.config.to_dict()
        settings["text_config"]["num_hidden_layers"] = layers
        return replace(self.model, config=type(self.model.config).from_dict(settings))

    def drawing(self, bandwidth: float) -> list[Row]:
        policy = self.gpu.filled(self.model.policy(self.recipe.model)).eval()
        given = prompts(policy, max(1, self.samples // 16), self.grid, self.gpu.device)
        noise = torch.rand(self.samples, self.tokens, *self.code_shape)

        def draw(engine: Engine) -> Any:
            with torch.no_grad(), self.gpu.autocast():
                return rollout(policy, given, noise, return_gaps=True, engine=engine)

        timed: dict[Engine, tuple[float, int | None]] = {}
        for engine in ENGINES if self.gpu.is_cuda else ENGINES[:1]:
            draw(engine)  # libraries set themselves up, layers compile
            timed[engine] = self.gpu.timed(partial(draw, engine))[1:]
        visited = [policy.model.language_model.layers, policy.visual_decoder_layers, policy.output_layer_vistok]
        weights = sum(parameter.nbytes for module in visited for parameter in module.parameters())
        read = weights + self.samples * cache_bytes(policy, PREFIX + self.tokens // 2)
        planned = cache_parts(self.recipe, policy, self.samples, 16, PREFIX, self.tokens, False, "rollout")
        rows: list[Row] = []
        for engine, (seconds, peak) in timed.items():
            rows += [
                (
                    f"rollout of {self.samples}, {engine}, ms per token",
                    f"{seconds / self.tokens * 1e3:.2f}",
                    f"reading takes {read / bandwidth * 1e3:.2f}",
                ),
                memory(f"rollout, {engine}", peak, sum(part.bytes for part in planned)),
            ]
        return rows

    def decoding(self) -> list[Row]:
        steps, images, dtype = self.recipe.decode.num_inference_steps, min(16, self.samples), torch.bfloat16
        transformer, vae = (
            self.gpu.filled(m) for m in (self.model.sd3_transformer(dtype), self.model.autoencoder(dtype))
        )
        side, config = self.size // 2 ** (len(vae.config.block_out_channels) - 1), transformer.config

        def some(*shape: int) -> Tensor:
            return torch.randn(images, *shape, device=self.gpu.device, dtype=dtype)

        inputs = {
            "hidden_states": some(config.in_channels, side, side),
            "encoder_hidden_states": some(DECODER_PROMPT_TOKENS, config.joint_attention_dim),
            "pooled_projections": some(config.pooled_projection_dim),
            "timestep": torch.full((images,), 500.0, device=self.gpu.device),
            "prepared_siglip": some((side // config.patch_size) ** 2, transformer.inner_dim),
        }

        @torch.no_grad()
        def decode() -> None:
            for _ in range(steps):
                transformer(**inputs, return_dict=False)
            vae.decode(some(vae.config.latent_channels, side, side), return_dict=False)[0].float()

        sized = replace(self.recipe, rollout=replace(self.recipe.rollout, height=self.size, width=self.size))
        planned = Simulation(self.model).decode(sized, images)
        decode()
        _, seconds, peak = self.gpu.timed(decode)
        rows = [(f"decode of {images}, {steps} steps, seconds", f"{seconds:.2f}", ""), memory("decode", peak, planned)]
        if self.gpu.is_cuda:
            transformer.compile_repeated_blocks(fullgraph=True, options=compile_options(self.gpu.device.type))
            with compiling("the decoder's blocks", "nothing"):
                decode()
                _, compiled, peak = self.gpu.timed(decode)
            rows += [
                ("the same, its blocks compiled", f"{compiled:.2f}", f"{seconds / compiled:.2f} times as fast"),
                memory("decode, compiled", peak, planned),
            ]
        return rows

    def update(self, name: str, recipe: Recipe) -> list[Row]:
        """One micro-batch and the optimizer's step, on as many text layers as fit."""
        micro = recipe.trainer["per_device_train_batch_size"]
        layers, simulation, activations = self._fitting(recipe, micro)
        policy = self.gpu.filled(simulation.model.policy(recipe.model)).train()
        checkpoint_layers(base_model(policy), simulation.kept_layers(recipe))
        trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-6)
        alike = alike_of(recipe, micro)
        given = prompts(policy, micro // alike, self.grid, self.gpu.device)
        branch = Branch.of(given, [row // alike for row in range(micro)], self.model.config.image_token_id)
        shape = (micro, self.tokens, *self.code_shape)
        bits = torch.randint(0, 2, shape, dtype=torch.uint8, device=self.gpu.device)
        guidance, advantages = recipe.rollout.guidance_settings, torch.ones(micro, device=self.gpu.device)
        reference = torch.zeros(shape, device=self.gpu.device)

        def step() -> float:
            with self.gpu.autocast():
                gap = guidance.policy_gap(replay(policy, bits, branch, None, guidance))
                inputs = LossInputs(bits=bits, gap=gap, ref_gap=reference, advantages=advantages)
                loss, _ = policy_loss(inputs, recipe.algorithm.loss_settings)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.item()

        step()  # makes the optimizer's states
        loss, seconds, peak = self.gpu.timed(step)
        gradients = sum(parameter.nbytes for parameter in trained)
        assert loss == loss, "the loss is NaN"
        of = f"{layers} of {self.model.config.text_config.num_hidden_layers} text layers"
        return [
            (f"{name}, a micro-batch of {micro} and the optimizer's step, seconds", f"{seconds:.2f}", of),
            memory(name, peak, gradients + activations),
        ]

    def _fitting(self, recipe: Recipe, micro: int) -> tuple[int, Simulation, int]:
        """(text layers, their simulation, bytes of activations), the most that leave a tenth of the memory free."""
        free, layers = 0.9 * self.gpu.free(), self.model.config.text_config.num_hidden_layers
        while True:
            simulation = Simulation(self.cut(layers))
            policy = simulation.policy(recipe)
            trained = sum(parameter.nbytes for parameter in policy.parameters() if parameter.requires_grad)
            weights = sum(parameter.nbytes for parameter in policy.parameters())
            activations = simulation.update(recipe, micro, PREFIX, self.tokens)
            if weights + 5 * trained + activations <= free or layers == 1:  # gradients, two states, and two in work
                return layers, simulation, activations
            layers = max(1, layers - 4)


def memory(name: str, peak: int | None, planned: int) -> Row:
    measured = "" if peak is None else f"{peak / GIB:.2f}"
    return f"{name}, GiB beyond what was there", measured, f"plan: {planned / GIB:.2f}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--checkpoint", help="folder or hub id; its config files are enough")
    model.add_argument("--preset", help="a preset's sizes")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--size", type=int, default=512, help="height and width in pixels")
    arguments = parser.parse_args(argv)
    gpu = Gpu(arguments.device)
    full, lora = (
        load_recipe(ROOT / "configs" / f"uniar_sft_{name}.yaml", [f"trainer.gradient_checkpointing={checkpointed}"])
        for name, checkpointed in (("512", "true"), ("lora", "false"))
    )
    if arguments.preset or arguments.checkpoint:
        section = {"path": arguments.checkpoint, "preset": arguments.preset, "dtype": "bfloat16"}
        full, lora = (replace(r, model=ModelSection(**section, lora=r.model.lora)) for r in (full, lora))
    name = torch.cuda.get_device_name(gpu.device) if gpu.is_cuda else "CPU"
    bandwidth, arithmetic = rates(gpu)
    vectors = golden(gpu)
    rows: list[Row] = [
        (f"golden vectors, {kind}", f"{apart:.1e}", f"at most {most:g}") for kind, apart, most in vectors
    ]
    rows += [
        ("reading, GB/s", f"{bandwidth / 1e9:.0f}", ""),
        ("a bfloat16 product, TFLOP/s", f"{arithmetic / 1e12:.1f}", ""),
        *copying(gpu),
    ]
    bench = Bench(gpu, planned_model(full.model), full, arguments.samples, arguments.size)
    print(f"{name}, torch {torch.__version__}; {bench.model.origin}; {arguments.size}×{arguments.size} pixels\n")
    for part in (
        lambda: bench.drawing(bandwidth),
        bench.decoding,
        lambda: bench.update("LoRA", lora),
        lambda: bench.update("all weights", full),
    ):
        rows += part()
    print("| | measured | beside |\n| --- | --- | --- |")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return int(any(apart > most for _, apart, most in vectors))


if __name__ == "__main__":
    raise SystemExit(main())
