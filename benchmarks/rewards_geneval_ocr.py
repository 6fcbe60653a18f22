"""Milliseconds an image that `geneval` and `ocr` take here, at the published models' sizes.

    python benchmarks/rewards_geneval_ocr.py                     # 512×512, 8 images
    python benchmarks/rewards_geneval_ocr.py --images 32 --device cuda --dtype bfloat16

`geneval` has random weights of the published sizes (Mask2Former with Swin-S and 100 queries, CLIP ViT-L/14), which take
as long as trained ones. They are sure of nothing, so finding objects and naming the colours of crops are timed apart:
an image costs the first, and the second for each object whose colour is asked for. `ocr` reads drawn texts with its own
models, on the CPU. Times are the least of the repeats.
"""

import argparse
import tempfile
import time
from collections.abc import Callable

import torch
from PIL import Image, ImageDraw, ImageFont

from rewards import RewardBatch
from rewards.geneval import GenEval
from rewards.geneval_request import OBJECT_NAMES
from rewards.ocr import OCR
from rewards.open_clip_model import OpenClip

SENTENCE = "Seven wizards quietly mix\na large bowl of green soup\nand read the morning news."


class RandomClip(OpenClip):
    """An architecture with random weights."""

    def build(self, look: object = None) -> torch.nn.Module:
        import open_clip

        return open_clip.create_model(self.name, load_weights=False)


def random_detector(folder: str) -> str:
    """Saves a Mask2Former of the sizes of facebook/mask2former-swin-small-coco-instance."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    backbone = SwinConfig(
        embed_dim=96,
        depths=[2, 2, 18, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    labels = dict(enumerate(OBJECT_NAMES))
    config = Mask2FormerConfig(
        backbone_config=backbone, id2label=labels, label2id={name: index for index, name in labels.items()}
    )
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    return folder


def drawn(count: int, size: int) -> list[Image.Image]:
    images = []
    for index in range(count):
        image = Image.new("RGB", (size, size), "white")
        font = ImageFont.load_default(size=size // 18)
        ImageDraw.Draw(image).multiline_text((size // 20, size // 4 + index), SENTENCE, font=font, fill="black")
        images.append(image)
    return images


def milliseconds(call: Callable[[], object], count: int, repeats: int, device: str) -> float:
    """The least time of the repeats, by `count`, after a first call that is not timed."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1000 * min(times) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = drawn(options.images, options.size)
    batch = RewardBatch(["x"] * len(images), images, metadata=[{"include": [{"class": "dog"}]}] * len(images))

    with tempfile.TemporaryDirectory() as folder:
        geneval = GenEval(detector=random_detector(folder), device=options.device, dtype=options.dtype)
        geneval.clip = RandomClip("ViT-L-14", "openai")
        geneval.load()
    classify = geneval._model["colors"]

    def colors() -> None:
        for crops in geneval.batches(images):
            classify(crops, ["dog"] * len(crops))

    ocr = OCR(threads=options.threads)
    texts = RewardBatch(["x"] * len(images), images, metadata=[{"text": SENTENCE}] * len(images))
    rows = (
        ("geneval, objects", lambda: geneval.score(batch), options.device),
        ("geneval, the colour of one object", colors, options.device),
        ("ocr, three lines", lambda: ocr.score(texts), "cpu"),
    )
    print(f"{options.size}×{options.size}, {options.images} images, {options.dtype}, {options.threads} threads")
    for what, call, device in rows:
        print(f"{what}, {device}: {milliseconds(call, len(images), options.repeats, device):.0f} ms an image")


if __name__ == "__main__":
    main()
