"""Work captured as CUDA graphs. What is done here and nowhere else needs a GPU."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from typing import Self

import torch


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The same each time: the allocator keeps memory for each stream."""
    return torch.cuda.Stream(device)


class CudaCapture:
    """Inside, work is queued on a side stream, where it can be captured; called, it captures a function.

    Capturing runs Python and launches nothing; the function must have been run before, on the same stream. What it
    allocates comes from a pool that all graphs of this context share, given back with the last of them. Graphs hold
    addresses: they serve as long as weights and buffers stay where they are, here for a rollout.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream, self._pool = _side_stream(device), None
        self._inside = ExitStack()

    def __enter__(self) -> Self:
        before = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(before)
        self._inside.callback(before.wait_stream, self.stream)
        self._inside.enter_context(torch.cuda.stream(self.stream))
        # Autocast keeps what it has cast of float32 weights until it ends, which a graph would not know.
        self._inside.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
        torch.set_autocast_cache_enabled(False)
        return self

    def __exit__(self, *raised: object) -> None:
        self._inside.close()

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # Other threads may score images at the same time; what they do on the GPU is no part of it.
        with torch.cuda.graph(graph, pool=self._pool, stream=self.stream, capture_error_mode="thread_local"):
            function()
        self._pool = graph.pool()
        return graph.replay
