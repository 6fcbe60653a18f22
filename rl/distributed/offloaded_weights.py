"""Weights that wait in the machine's memory and come to the device for each use, copied beside what it computes."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

BLOCK = 2**30
"""bytes of page-locked memory taken at once, of which torch makes a power of two"""


class OffloadedWeights:
    """Those of a model, which nobody changes while they are on the device."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        """model: on the CPU. With CUDA its weights move to page-locked memory, from where a GPU copies by itself."""
        self._device, self._waiting = device, list[Tensor]()
        self._tensors = [*model.parameters(), *model.buffers()]
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda" and torch.cuda.is_available():
            self._stream = torch.cuda.Stream(device)
            for tensor, locked in zip(self._tensors, page_locked(self._tensors), strict=True):
                tensor.data = locked

    def fetch(self) -> None:
        """Begins to copy, and returns at once. Their memory on the device is taken now."""
        if self._waiting:
            return
        self._waiting = [tensor.data for tensor in self._tensors]
        for tensor in self._tensors:
            tensor.data = torch.empty_like(tensor.data, device=self._device)
        if self._stream is not None:  # what was launched before may still use that memory
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            for tensor, waiting in zip(self._tensors, self._waiting, strict=True):
                tensor.data.copy_(waiting, non_blocking=True)

    def use(self) -> None:
        """What is launched from here on finds them on the device."""
        self.fetch()
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def release(self) -> None:
        """Gives their memory on the device back, to what is launched from here on."""
        if self._waiting:
            for tensor, waiting in zip(self._tensors, self._waiting, strict=True):
                tensor.data = waiting
        self._waiting = []

    def keep(self, part: nn.Module) -> None:
        """From now on this part of the model stays on the device. Not to be called between `fetch` and `release`."""
        kept = {id(tensor) for tensor in (*part.parameters(), *part.buffers())}
        self._tensors = [tensor for tensor in self._tensors if id(tensor) not in kept]
        part.to(self._device)


def page_locked(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies, many to a block: torch rounds what it locks up to a power of two, which of each alone would be a third
    more."""
    sizes = [-(-tensor.nbytes // 64) * 64 for tensor in tensors]
    block, filled, left, copies = torch.empty(0, dtype=torch.uint8), 0, sum(sizes), list[Tensor]()
    for tensor, size in zip(tensors, sizes, strict=True):
        if filled + size > len(block):
            block = torch.empty(max(size, min(BLOCK, left)), dtype=torch.uint8, pin_memory=torch.cuda.is_available())
            filled = 0
        piece = block[filled : filled + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        copies.append(piece.copy_(tensor.data))
        filled, left = filled + size, left - size
    return copies
