"""Weights that wait in the machine's memory and come to the device for each use, copied beside what it computes."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

BLOCK = 2**30
"""bytes of a block of page-locked memory that holds many weights"""


class OffloadedWeights:
    """Where a frozen model's weights are. Between `release` and `fetch` they may be changed, at no other time."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        """model: on the CPU. With CUDA its weights move to page-locked memory, from where a GPU copies by itself."""
        self._device, self._waiting = device, list[Tensor]()
        self._tensors = [*model.parameters(), *model.buffers()]
        self._stream: torch.cuda.Stream | None = None
        if torch.cuda.is_available():
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
            self.use()  # or that memory would still be copied to
            for tensor, waiting in zip(self._tensors, self._waiting, strict=True):
                tensor.data = waiting
        self._waiting = []

    def keep(self, part: nn.Module) -> None:
        """From now on this part of the model stays on the device, as before where it does. Not to be called between
        `fetch` and `release`."""
        kept = {id(tensor) for tensor in (*part.parameters(), *part.buffers())}
        self._tensors = [tensor for tensor in self._tensors if id(tensor) not in kept]
        part.to(self._device)


def page_locked(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of them, many to a block."""
    places, sizes = packed([tensor.nbytes for tensor in tensors])
    blocks = [torch.empty(size, dtype=torch.uint8, pin_memory=torch.cuda.is_available()) for size in sizes]
    copies = []
    for tensor, (block, start) in zip(tensors, places, strict=True):
        piece = blocks[block][start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        copies.append(piece.copy_(tensor.data))
    return copies


def packed(sizes: Sequence[int]) -> tuple[list[tuple[int, int]], list[int]]:
    """Where tensors of so many bytes lie, (block, start) of each, and the sizes of the blocks.

    torch rounds what it locks up to a power of two, which of each tensor alone would be a third more. So blocks are
    powers of two, and what large tensors leave of them is filled with small ones.
    """
    places, blocks, filled = dict[int, tuple[int, int]](), list[int](), list[int]()
    rounded = [-(-size // 64) * 64 for size in sizes]
    left = sum(rounded)
    for number in sorted(range(len(sizes)), key=rounded.__getitem__, reverse=True):
        size = rounded[number]
        block = next((n for n, whole in enumerate(blocks) if filled[n] + size <= whole), len(blocks))
        if block == len(blocks):
            blocks.append(max(min(BLOCK, _power_of_two(left // 2 + 1)), _power_of_two(size)))
            filled.append(0)
        places[number] = block, filled[block]
        filled[block] += size
        left -= size
    return [places[number] for number in range(len(sizes))], blocks


def _power_of_two(least: int) -> int:
    return 1 << max(0, least - 1).bit_length()
