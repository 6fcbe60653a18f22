"""The visual decoder, each change for speed beside what it takes the place of, in one process and in turns.

    python benchmarks/decoder.py                         # the released widths with 3 blocks, 256×256 pixels, 1 thread
    python benchmarks/decoder.py --device cuda --dtype bfloat16 --layers 24 --size 512 --images 16

A step of the SD3 transformer as it is and with its blocks compiled (`decode.compile`); the autoencoder with its
channels first and last; the constant prompt encoded, and read back (the preset `nano`, whose encoders are small). Times
are the least of the repeats: seconds of the CPU, or of the clock on a GPU. Weights are random. Exits with 1 where what
is compared differs by more than rounding.
"""

import argparse
import copy
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

# The folder of this script comes first, where rewards.py would be taken for the package.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from rl.config.recipe import load_recipe  # noqa: E402
from rl.plan.planned_model import planned_model  # noqa: E402
from rl.plan.simulation import DECODER_PROMPT_TOKENS  # noqa: E402
from uniar.compiling import compile_options, compiling  # noqa: E402
from uniar.modeling_sd3 import SD3Transformer2DModelWithSigLIP  # noqa: E402
from uniar.presets.build import preset_path  # noqa: E402
from uniar.prompt_embedding import constant_prompt  # noqa: E402

ROOT = Path(__file__).parent.parent
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.3}
"""of random weights' outputs, whose standard deviation is about 1"""


def seconds(function: Callable[[], object], device: torch.device) -> float:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = clock()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def in_turns(functions: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """The least time of each over `repeats` rounds of all."""
    rounds = [{name: seconds(function, device) for name, function in functions.items()} for _ in range(repeats)]
    return {name: min(times[name] for times in rounds) for name in functions}


def filled(module: nn.Module, device: torch.device) -> nn.Module:
    """A module of the meta device with random weights, of a size that keeps numbers finite."""
    module.to_empty(device=device)
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.normal_(std=tensor[0].numel() ** -0.5) if tensor.ndim > 1 else tensor.fill_(1.0)
    return module


def step(transformer: SD3Transformer2DModelWithSigLIP, images: int, side: int) -> Callable[[], Tensor]:
    """One step of denoising, of latents `side` wide."""
    config, dtype, device = transformer.config, transformer.dtype, transformer.device
    random = partial(torch.randn, device=device, dtype=dtype)
    return partial(
        transformer,
        hidden_states=random(images, config.in_channels, side, side),
        encoder_hidden_states=random(images, DECODER_PROMPT_TOKENS, config.joint_attention_dim),
        pooled_projections=random(images, config.pooled_projection_dim),
        timestep=torch.full((images,), 500.0, device=device),
        prepared_siglip=random(images, (side // config.patch_size) ** 2, transformer.inner_dim),
        return_dict=False,
    )


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--layers", type=int, default=3, help="blocks of the transformer, of 24 (default 3)")
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels (default 256)")
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    model = planned_model(load_recipe(str(ROOT / "configs" / "uniar_sft_512.yaml")).model)
    layers, side = arguments.layers, arguments.size // 8
    dual = [number for number in model.transformer["dual_attention_layers"] if number < layers // 2]
    model.transformer.update(num_layers=layers, dual_attention_layers=dual)
    rows, apart = [], []

    def compare(what: str, functions: dict[str, Callable[[], Tensor]]) -> None:
        first, second = (function().float() for function in functions.values())
        apart.append((first - second).abs().max().item())
        times = in_turns(functions, arguments.repeats, device)
        for name, taken in times.items():
            ratio = next(iter(times.values())) / taken
            rows.append((what, name, f"{1e3 * taken:.1f}", f"{ratio:.2f}"))

    transformer = filled(model.sd3_transformer(dtype), device)
    compiled = copy.deepcopy(transformer)
    compiled.compile_repeated_blocks(fullgraph=True, options=compile_options(device.type))
    eager_step = step(transformer, arguments.images, side)
    compiled_step = partial(compiled, *eager_step.args, **eager_step.keywords)
    with compiling("the decoder's blocks", "nothing"):
        started = time.perf_counter()
        compiled_step()
        compiled_in = time.perf_counter() - started
        compare(
            f"a step of the transformer, {layers} blocks",
            {"as it is": lambda: eager_step()[0], "compiled": lambda: compiled_step()[0]},
        )

    first = filled(model.autoencoder(dtype).decoder, device)
    last = copy.deepcopy(first).to(memory_format=torch.channels_last)
    latents = torch.randn(arguments.images, model.vae["latent_channels"], side, side, device=device, dtype=dtype)
    compare("the autoencoder", {"channels first": partial(first, latents), "channels last": partial(last, latents)})

    with tempfile.TemporaryDirectory() as folder:
        pipeline = preset_path("nano") / "sd3_pipeline"
        os.environ["UNIAR_CACHE"] = folder
        encode = partial(constant_prompt, pipeline, device, dtype)
        encoding = seconds(encode, device)
        reading = min(seconds(encode, device) for _ in range(arguments.repeats))
    rows.append(("the constant prompt, preset nano", "encoded", f"{1e3 * encoding:.1f}", "1.00"))
    rows.append(("", "read back", f"{1e3 * reading:.1f}", f"{encoding / reading:.1f}"))

    clock = "CPU" if device.type == "cpu" else "clock"
    drawn = f"{arguments.images} of {arguments.size}×{arguments.size}"
    print(f"{device}, {arguments.dtype}, {drawn}, torch {torch.__version__}")
    print(f"\n| | | {clock}, ms | times as fast |\n| --- | --- | --- | --- |")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    print(f"\ncompiling: {compiled_in:.0f} s of the clock; largest differences: {', '.join(f'{d:.1e}' for d in apart)}")
    return int(max(apart) > TOLERANCES[dtype])


if __name__ == "__main__":
    sys.exit(main())
