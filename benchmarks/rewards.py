"""Milliseconds per image for each reward, on this machine.

Reward models get random weights of the real size, written in the published file's form and read by the reward's own
loader, so nothing is downloaded; where that is not possible the table says what was used in place. Each reward scores
the same images (512×512, half as many prompts) once to warm up, then `--repeats` times; the least counts. Preparation
on the CPU (resizing, tokenizing) is part of it, loading is not and has its own column. The time that the process spent
on the CPU, all threads together, stands beside the time on the clock: on a shared machine it is the one that tells.

A detector with random weights is sure of nothing, so `geneval` has no colours to name; an object whose colour is asked
for costs about what an image costs `aesthetic`, which has the same image tower. `vlm_judge` and `remote` wait for
others: see benchmarks/reward_server.py.

    python benchmarks/rewards.py                            # all; 4 images
    python benchmarks/rewards.py pickscore ocr --device cuda --dtype bfloat16 --images 32

A reward is added as an entry of ENTRIES: its name, and a function that is given an empty folder for weights and returns
the recipe entry to measure.
"""

import argparse
import json
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
import transformers
from PIL import Image
from torch import nn

# The folder of this script comes first, where this very file would be taken for the package that it measures.
sys.path[0] = str(Path(__file__).resolve().parents[1])

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

    from rewards.models.pickscore import PUBLISHED

    torch.save(random_tensors(shapes_of(lambda: CLIPModel(CLIPConfig(**PUBLISHED)))), folder / "pytorch_model.bin")
    return {"use": "pickscore", "weights": str(folder / "pytorch_model.bin")}


def hpsv2(folder: Path) -> dict[str, Any]:
    return {"use": "hpsv2", "weights": str(open_clip_file(folder, "ViT-H-14", wrap=True))}


def image_reward(folder: Path) -> dict[str, Any]:
    from rewards.models.blip import LARGE, MED, BlipReward, published_name

    torch.save(random_tensors(shapes_of(lambda: BlipReward(LARGE, MED), published_name)), folder / "ImageReward.pt")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    words += [f"word{number}" for number in range(30522 - len(words))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return {"use": "image_reward", "weights": str(folder), "vocabulary": str(folder)}


def aesthetic(folder: Path) -> dict[str, Any]:
    from rewards.models.linear_head import LinearHead

    torch.save(random_tensors(shapes_of(lambda: LinearHead(768))), folder / "head.pth")
    clip = {"model_weights": str(open_clip_file(folder, "ViT-L-14")), "model_weights_like": "openai"}
    return {"use": "aesthetic", "weights": str(folder / "head.pth"), **clip}


def geneval(folder: Path) -> dict[str, Any]:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    from rewards.geneval.request import OBJECT_NAMES

    swin_small = SwinConfig(
        embed_dim=96,
        depths=[2, 2, 18, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    labels = dict(enumerate(OBJECT_NAMES))
    config = Mask2FormerConfig(backbone_config=swin_small, id2label=labels, label2id={n: i for i, n in labels.items()})
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder / "detector")
    clip = {"clip_weights": str(open_clip_file(folder, "ViT-L-14")), "clip_weights_like": "openai"}
    return {"use": "geneval", "detector": str(folder / "detector"), **clip}


def qwen3_vl_2b(folder: Path) -> dict[str, Any]:
    """Qwen3-VL's sizes, with the processor of a preset, whose tokenizer is smaller: questions have some tokens more."""
    from safetensors.torch import save_file
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    preset = Path(small_uniar(folder))
    for file in preset.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            shutil.copy(file, folder)
    tokens = json.loads((preset / "config.json").read_text())
    config = Qwen3VLConfig(
        text_config={
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
        },
        vision_config={
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "deepstack_visual_indexes": [5, 11, 17],
        },
        tie_word_embeddings=True,
        **{key: value for key, value in tokens.items() if key.endswith("_token_id") and isinstance(value, int)},
    )
    config.architectures = ["Qwen3VLForConditionalGeneration"]
    config.save_pretrained(folder)
    tensors = random_tensors(shapes_of(lambda: Qwen3VLForConditionalGeneration(config)))
    tensors.pop("lm_head.weight", None)  # the embeddings
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return {"use": "vqa_score", "model": str(folder), "answers": ["Y"]}


def small_uniar(folder: Path) -> str:
    import benchmarks.small_preset  # noqa: F401 (it makes the preset known)
    from uniar.presets.build import build_preset

    return str(build_preset("small", folder / "small"))


ENTRIES = [
    Entry("clip_score", clip_score, "ViT-L/14"),
    Entry("pickscore", pickscore, "ViT-H/14"),
    Entry("hpsv2", hpsv2, "ViT-H/14"),
    Entry("image_reward", image_reward, "BLIP-large"),
    Entry("aesthetic", aesthetic, "ViT-L/14, image tower"),
    Entry("geneval", geneval, "Mask2Former with Swin-S, at 800×800"),
    Entry("vqa_score", qwen3_vl_2b, "Qwen3-VL-2B"),
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
    metadata = [{"include": [{"class": "cat", "count": 1}]}] * images  # for geneval
    return RewardBatch(prompts, pictures, metadata=metadata, bits=bits)


def measure(entry: Entry, batch: RewardBatch, folder: Path, options: dict[str, Any], repeats: int) -> tuple[float, ...]:
    """Seconds to load, milliseconds per image by the clock and of CPU, millions of parameters."""
    recipe = entry.recipe(folder)
    suite = RewardSuite.from_recipe([{**recipe, **(options if entry.model else {}), "name": entry.name}])
    started = time.perf_counter()
    suite.load()
    loaded = time.perf_counter() - started
    times, spent = [], []
    for _ in range(repeats + 1):
        started = time.process_time()
        table = suite.score(batch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(table.seconds[entry.name])
        spent.append(time.process_time() - started)
    model = getattr(suite.rewards[0], "_model", None)
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6 if isinstance(model, nn.Module) else 0.0
    suite.close()
    return loaded, min(times[1:]) * 1000 / len(batch), min(spent[1:]) * 1000 / len(batch), size


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
    where = f"{arguments.device}, {arguments.dtype}, {arguments.threads} threads, torch {torch.__version__}"
    print(f"{arguments.images} images of {SIZE}×{SIZE}, {where}")
    transformers.logging.disable_progress_bar()
    print("| reward | model | million parameters | load, s | ms per image | of CPU |\n|" + " --- |" * 6)
    for entry in ENTRIES:
        if arguments.names and entry.name not in arguments.names:
            continue
        folder = Path(tempfile.mkdtemp(prefix="reward-weights-"))
        try:
            loaded, each, spent, size = measure(entry, batch, folder, options, arguments.repeats)
        finally:
            shutil.rmtree(folder)
        shown = f"{size:.0f}" if size else ""
        print(f"| `{entry.name}` | {entry.weights} | {shown} | {loaded:.1f} | {each:.3g} | {spent:.3g} |", flush=True)


if __name__ == "__main__":
    main()
