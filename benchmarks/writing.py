"""Texts written by the engine against transformers' `generate`, side by side in one process.

    python benchmarks/writing.py                       # preset small, 8 rows, 128 tokens, float32, 2 threads
    python benchmarks/writing.py --rows 1 --picture    # one row, a question about a picture
    python benchmarks/writing.py --compiled            # the compiled engine too

Both begin with the same questions and the same random weights, take the likeliest token each time, and must write the
same. Sampled too, both from the whole distribution; generate then gives no log-probabilities, write does. No text ends
before its last token. Exits with 1 where greedy tokens differ or `generate` takes less of the CPU. Times are the least
of the repeats, which alternate between what is compared, of the clock and of the CPU.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# The folder of this script comes first, where rewards.py would be taken for the package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import AutoProcessor, logging  # noqa: E402

from benchmarks import small_preset  # noqa: E402, F401 (it makes the preset known)
from uniar.conversations import Message, as_drawings, encode_turns  # noqa: E402
from uniar.engine import Engine  # noqa: E402
from uniar.modeling_uniar import UniARForConditionalGeneration  # noqa: E402
from uniar.presets.build import build_preset  # noqa: E402
from uniar.turn_prompt import patch_grids  # noqa: E402
from uniar.writing import text_noise, write  # noqa: E402

QUESTIONS = ("What is in this image?", "Describe the picture in detail. How many are there, and which colour?")


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock and of the CPU."""
    clock, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - clock, time.process_time() - cpu


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="small")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--picture", action="store_true", help="a picture of 256×256 before each question")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()  # generate warns of an end that cannot come
    with tempfile.TemporaryDirectory() as folder:
        build_preset(options.preset, folder)
        model = UniARForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        processor = AutoProcessor.from_pretrained(folder)
    shown = [Image.new("RGB", (256, 256), "red")] if options.picture else []
    turns = [[Message("user", (*shown, QUESTIONS[row % 2]))] for row in range(options.rows)]
    prompt = encode_turns(turns, model, processor, new_tokens=options.tokens)
    given = {"input_ids": prompt.input_ids, "attention_mask": prompt.attention_mask}
    if prompt.visual_bits is not None:
        grids = patch_grids([[as_drawings(shown, model, processor)[0].grid]] * options.rows, 2)
        given |= {"visual_bits": prompt.visual_bits, "image_grid_thw": grids}
    noise = text_noise(range(options.rows), options.tokens)

    def theirs(**sampling: object) -> torch.Tensor:
        settings = {"top_k": 0, "top_p": 1.0, **sampling, "eos_token_id": -1}
        said = model.generate(**given, max_new_tokens=options.tokens, **settings)
        return said[:, prompt.input_ids.shape[1] :]

    def ours(temperature: float, engine: Engine = "eager") -> torch.Tensor:
        return write(model, prompt, noise, ends=[-1], temperature=temperature, engine=engine).tokens

    same = torch.equal(ours(0), theirs(do_sample=False))
    runs = {
        "generate, greedy": lambda: theirs(do_sample=False),
        "write, greedy": lambda: ours(0),
        "generate, sampled": lambda: theirs(do_sample=True, temperature=1.0),
        "write, sampled": lambda: ours(1.0),
    }
    if options.compiled:
        same = torch.equal(ours(0, "compiled"), ours(0)) and same
        ours(1.0, "compiled")
        runs["write compiled, greedy"] = lambda: ours(0, "compiled")
        runs["write compiled, sampled"] = lambda: ours(1.0, "compiled")
    times = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, function in runs.items():
            times[name].append(timed(function))
    least = {name: [min(column) for column in zip(*found, strict=True)] for name, found in times.items()}
    print(f"{options.rows} rows, {prompt.input_ids.shape[1]} + {options.tokens} tokens, preset {options.preset}")
    print("| ms per token | clock | times as fast | CPU | times as fast |\n| --- | --- | --- | --- | --- |")
    for name, (clock, cpu) in least.items():
        before = least[name.replace("write compiled", "write").replace("write", "generate")]
        faster = [f"{a / b:.2f}" if name.startswith("write") else "" for a, b in zip(before, (clock, cpu), strict=True)]
        per_token = [f"{1000 * seconds / options.tokens:.2f}" for seconds in (clock, cpu)]
        print(f"| {name} | {per_token[0]} | {faster[0]} | {per_token[1]} | {faster[1]} |")
    print(f"greedy texts are the same: {'yes' if same else 'no'}")
    slower = any(least[f"write, {how}"][1] > least[f"generate, {how}"][1] for how in ("greedy", "sampled"))
    return int(slower or not same)


if __name__ == "__main__":
    sys.exit(main())
