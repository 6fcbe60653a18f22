"""How many bytes a computation holds at its peak, found by running it: on tensors with memory or, for models too large
for this machine, on the meta device, where tensors have shapes and nothing else."""

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside it and still there; `peak` is their largest sum.

    known: tensors that exist already, which count for nothing. Workspaces inside kernels, and what an allocator rounds
    up or cannot reuse, are not seen.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._sizes: weakref.WeakKeyDictionary[torch.UntypedStorage, int] = weakref.WeakKeyDictionary()
        for tensor in known:
            self._sizes[tensor.untyped_storage()] = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage, size: int | None = None) -> None:
        """size: bytes that it takes, where those are not its own."""
        if storage in self._sizes:
            return
        size = self._sizes[storage] = storage.nbytes() if size is None else size
        weakref.finalize(storage, self._free, size)
        self.held += size
        self.peak = max(self.peak, self.held)

    def _free(self, size: int) -> None:
        self.held -= size


@contextmanager
def fused_kernels() -> Iterator[None]:
    """Lets attention and RMSNorm on the meta device hold what a GPU's fused kernels do: without it, torch would write
    out all scores there, and every step of the norm."""
    originals = F.scaled_dot_product_attention, F.rms_norm
    F.scaled_dot_product_attention, F.rms_norm = _fused_attention, fused_rms_norm
    try:
        yield
    finally:
        F.scaled_dot_product_attention, F.rms_norm = originals


def fused_rms_norm(hidden: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """A layer norm in its place: also one kernel, which keeps its input and a number or two per row."""
    return F.layer_norm(hidden, shape, weight, None, eps)


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for tensor in (key, value))
    if attn_mask is not None:
        attn_mask = attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
    with_gradient = torch.is_grad_enabled() and query.requires_grad
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, with_gradient, dropout_p, is_causal, scale=scale
    )[0]


class Measured:
    """`with Measured(module, …) as measured:` `measured.peak` bytes beyond the modules' own weights and gradients.

    Each gradient is dropped as soon as it is complete, so `peak` holds one of them at most.
    """

    def __init__(self, *modules: torch.nn.Module) -> None:
        self._modules = modules
        known = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        self._bytes = PeakBytes(known)
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        parameters = [parameter for module in self._modules for parameter in module.parameters()]
        for parameter in parameters:
            if parameter.requires_grad:
                self._exits.callback(parameter.register_post_accumulate_grad_hook(_drop_gradient).remove)
        if any(parameter.is_meta for parameter in parameters):
            self._exits.enter_context(fused_kernels())
        self._exits.enter_context(self._bytes)
        return self

    def __exit__(self, *error: Any) -> None:
        self._exits.__exit__(*error)

    @property
    def peak(self) -> int:
        return self._bytes.peak

    @property
    def held(self) -> int:
        """Bytes that are there now."""
        return self._bytes.held


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None
