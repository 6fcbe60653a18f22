"""Completions and images as notes that JSON can hold and tensors on the CPU: what processes send each other of
samples."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rl.policy.completion import Completion
from uniar.conversations import Drawing

Notes = list[dict[str, Any]]


def completion_message(completions: Sequence[Completion]) -> tuple[Notes, dict[str, Tensor]]:
    """Notes of each completion, and of each drawing a tensor: its bits, eight to a byte."""
    notes: Notes = []
    tensors = {}
    for place, one in enumerate(completions):
        notes.append({"texts": one.texts, "episode": one.episode})
        if one.drawing is not None:
            notes[-1] |= {"rows": one.drawing.rows, "shape": list(one.drawing.bits.shape)}
            tensors[f"bits {place}"] = torch.from_numpy(np.packbits(one.drawing.bits.cpu().numpy()))
    return notes, tensors


def completions_in(notes: Notes, tensors: Mapping[str, Tensor]) -> list[Completion]:
    """The completions of `completion_message`."""
    found = []
    for place, said in enumerate(notes):
        drawing = None
        if "shape" in said:
            bits = np.unpackbits(tensors[f"bits {place}"].numpy(), count=math.prod(said["shape"]))
            drawing = Drawing(torch.from_numpy(bits.reshape(said["shape"])), said["rows"])
        found.append(Completion(drawing, tuple(said["texts"]), said["episode"]))
    return found


def image_tensors(images: Sequence[Image.Image | None]) -> dict[str, Tensor]:
    """Of each image that is there a tensor (H, W, 3) uint8."""
    return {
        f"image {place}": torch.from_numpy(np.array(image.convert("RGB")))
        for place, image in enumerate(images)
        if image is not None
    }


def images_in(tensors: Mapping[str, Tensor], count: int) -> list[Image.Image | None]:
    """The images of `image_tensors`, None where there is none."""
    names = [f"image {place}" for place in range(count)]
    return [Image.fromarray(tensors[name].numpy()) if name in tensors else None for name in names]
