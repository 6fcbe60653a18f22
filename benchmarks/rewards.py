"""Milliseconds an image for each reward, on this machine.

Reward models get random weights of the real size, written in the published file's form and read by the reward's own
loader, so nothing is downloaded; where that is not possible the table says what was used in place. Each reward scores
the same images (512×512, half as many prompts) once to warm up, then `--repeats` times; the least counts. Preparation
on the CPU (resizing, tokenizing) is part of it, loading is not and has its own column.

    python benchmarks/rewards.py                            # all; 4 images
    python benchmarks/rewards.py pickscore ocr --device cuda --dtype bfloat16 --images 32

A reward is added as an entry of ENTRIES: its name, and a function that is given an empty folder for weights and returns
the recipe entry to measure.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

# The folder of this script comes first, where this very file would be taken for the package that it measures.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

from rewards import RewardBatch, RewardSuite  # noqa: E402

SIZE = 512
WORDS = ("a", "red", "cat", "on", "the", "roof", "of", "an", "old", "house", "at", "night", "in", "heavy", "rain")


@dataclass(frozen=True)
class Entry:
    """What is measured under a name."""

    name: str
    recipe: Callable[[Path], dict[str, Any]]
    """given a folder for weights, the recipe entry"""
    weights: str = ""
    """what stands in the table under "model" """
    model: bool = True
    """whether it takes `device` and `dtype`"""


def random_tensors(shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """float16 normal values of deviation 0.02, a block of a million repeated: what they are does not matter here."""
    block = (torch.randn(2**20, generator=torch.Generator().manual_seed(0)) * 0.02).half()

    def filled(shape: Sequence[int]) -> torch.Tensor:
        count = int(np.prod(shape))
        return block.repeat(-(-count // len(block)))[:count].reshape(shape).clone()

    return {name: filled(shape) for name, shape in shapes.items()}


def shapes_of(build: Callable[[], nn.Module], rename: Callable[[str], str] = str) -> dict[str, torch.Size]:
    """Names and shapes of a model, without its memory."""
    with torch.device("meta"):
        return {rename(name): tensor.shape for name, tensor in build().state_dict().items()}


def open_clip_file(folder: Path, architecture: str, wrap: bool = False) -> Path:
    import open_clip

    tensors = random_tensors(shapes_of(lambda: open_clip.create_model(architecture, load_weights=False, device="meta")))
    torch.save({"state_dict": tensors} if wrap else tensors, folder / "clip.pt")
    return folder / "clip.pt"


def clip_score(folder: Path) -> dict[str, Any]:
    return {"use": "clip_score", "weights": str(open_clip_file(folder, "ViT-L-14")), "weights_like": "openai"}


def pickscore(folder: Path) -> dict[str, Any]:
    from transformers import CLIPConfig, CLIPModel

    from rewards.pickscore import PUBLISHED

    torch.save(random_tensors(shapes_of(lambda: CLIPModel(CLIPConfig(**PUBLISHED)))), folder / "pytorch_model.bin")
    return {"use": "pickscore", "weights": str(folder / "pytorch_model.bin")}


def hpsv2(folder: Path) -> dict[str, Any]:
    return {"use": "hpsv2", "weights": str(open_clip_file(folder, "ViT-H-14", wrap=True))}


def image_reward(folder: Path) -> dict[str, Any]:
    from rewards.blip import LARGE, MED, BlipReward, published_name

    torch.save(random_tensors(shapes_of(lambda: BlipReward(LARGE, MED), published_name)), folder / "ImageReward.pt")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    words += [f"word{number}" for number in range(30522 - len(words))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return {"use": "image_reward", "weights": str(folder), "vocabulary": str(folder)}


def aesthetic(folder: Path) -> dict[str, Any]:
    from rewards.linear_head import LinearHead

    torch.save(random_tensors(shapes_of(lambda: LinearHead(768))), folder / "head.pth")
    clip = {"model_weights": str(open_clip_file(folder, "ViT-L-14")), "model_weights_like": "openai"}
    return {"use": "aesthetic", "weights": str(folder / "head.pth"), **clip}


def small_uniar(folder: Path) -> str:
    from uniar.presets import build_preset

    return str(build_preset("small", folder / "small"))


ENTRIES = [
    Entry("clip_score", clip_score, "ViT-L/14"),
    Entry("pickscore", pickscore, "ViT-H/14"),
    Entry("hpsv2", hpsv2, "ViT-H/14"),
    Entry("image_reward", image_reward, "BLIP-large"),
    Entry("aesthetic", aesthetic, "ViT-L/14, image tower"),
    Entry(
        "vqa_score",
        lambda folder: {"use": "vqa_score", "model": small_uniar(folder), "answers": ["Y"]},
        "the preset `small`, not a real size",
    ),
    Entry(
        "self_vqa",
        lambda folder: {"use": "self_vqa", "judge": small_uniar(folder), "answers": ["Y"]},
        "the preset `small`, not a real size",
    ),
    Entry("ocr", lambda folder: {"use": "ocr"}, "PP-OCR of rapidocr", model=False),
    Entry("compressibility", lambda folder: {"use": "compressibility"}, model=False),
    Entry("color", lambda folder: {"use": "color", "color": "red"}, model=False),
    Entry("sharpness", lambda folder: {"use": "sharpness"}, model=False),
    Entry("diversity", lambda folder: {"use": "diversity"}, model=False),
]


def make_batch(images: int) -> RewardBatch:
    """Smooth random images of 512×512 (a quoted word in each prompt, for ocr) with the bits of the preset `small`."""
    generator = np.random.default_rng(0)
    pictures = []
    for _ in range(images):
        coarse = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        pictures.append(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    prompts = [f'{" ".join(WORDS)} number {row // 2}, with the sign "OPEN"' for row in range(images)]
    bits = torch.randint(0, 2, (images, (SIZE // 32) ** 2, 4, 4, 16), dtype=torch.uint8)
    return RewardBatch(prompts, pictures, bits=bits)


def measure(entry: Entry, batch: RewardBatch, folder: Path, options: dict[str, Any], repeats: int) -> tuple[float, ...]:
    """Seconds to load, milliseconds an image, millions of parameters."""
    recipe = entry.recipe(folder)
    suite = RewardSuite.from_recipe([{**recipe, **(options if entry.model else {}), "name": entry.name}])
    started = time.perf_counter()
    suite.load()
    loaded = time.perf_counter() - started
    times = []
    for _ in range(repeats + 1):
        table = suite.score(batch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(table.seconds[entry.name])
    model = getattr(suite.rewards[0], "_model", None)
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6 if isinstance(model, nn.Module) else 0.0
    suite.close()
    return loaded, min(times[1:]) * 1000 / len(batch), size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="reward", help=f"of: {', '.join(e.name for e in ENTRIES)}")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    unknown = set(arguments.names) - {entry.name for entry in ENTRIES}
    if unknown:
        parser.error(f"no benchmark for {', '.join(sorted(unknown))}")
    torch.set_num_threads(arguments.threads)
    options = {"device": arguments.device, "dtype": arguments.dtype}
    batch = make_batch(arguments.images)
    print(
        f"{arguments.images} images of {SIZE}×{SIZE}, {arguments.device}, {arguments.dtype}, torch {torch.__version__}"
    )
    print("| reward | model | million parameters | load, s | ms an image |\n| --- | --- | --- | --- | --- |")
    for entry in ENTRIES:
        if arguments.names and entry.name not in arguments.names:
            continue
        folder = Path(tempfile.mkdtemp(prefix="reward-weights-"))
        try:
            loaded, each, size = measure(entry, batch, folder, options, arguments.repeats)
        finally:
            shutil.rmtree(folder)
        shown = f"{size:.0f}" if size else ""
        print(f"| `{entry.name}` | {entry.weights} | {shown} | {loaded:.1f} | {each:.3g} |", flush=True)


if __name__ == "__main__":
    main()
