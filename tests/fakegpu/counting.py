"""A GPU that computes nothing: tensors with a shape, a type and the device "cuda", and a count of what is asked of it.

Only in a process that has loaded device.cpp before torch. Of time there is a roofline alone (roofline.py).
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from fakegpu.roofline import seconds
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary
from transformers.utils import import_utils

from rl.plan.memory import PeakBytes, fused_rms_norm

ROOT = f"{Path(__file__).parents[2]}/"
GPU = "cuda"
BLOCK = 512
"""bytes that torch's allocator rounds up to"""
LARGE = 1e9
"""floating-point operations from which on a product counts as large"""

aten = torch.ops.aten
PRODUCTS = {"mm", "bmm", "addmm", "_addmm_activation", "baddbmm", "convolution", "convolution_backward"}
UNKNOWN = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}
NO_KERNEL = UNKNOWN | {  # they make, look at or describe a tensor
    *("view", "_unsafe_view", "expand", "transpose", "permute", "unsqueeze", "squeeze", "slice", "select", "t"),
    *("as_strided", "split", "split_with_sizes", "chunk", "unbind", "detach", "alias", "unfold", "diagonal"),
    *("lift_fresh", "_local_scalar_dense", "_reshape_alias"),
}
WAITS = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}
"""whose results have a value or a shape that the host must wait for"""


class Counts(PeakBytes):
    """A dispatch mode over FakeTensorMode that counts, on the GPU alone: bytes held, launches, waits of the host,
    copies between devices, operations on tensors of both, and products by type.

    What is computed from `known` tensors is known too, so that code may look at ids and masks. A bool of anything else
    is taken to be true: it is a check that passes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0
        self.seconds = 0.0
        """of the GPU, by a roofline"""
        self.waits: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.mixed: Counter[str] = Counter()
        self.cudnn_with_mask: Counter[str] = Counter()
        self.large_products: Counter[str] = Counter()
        """by type"""
        self.float32_shapes: set[tuple[int, ...]] = set()
        """of the tensors of large products in float32"""
        self._values = WeakTensorKeyDictionary()

    def known(self, value: Tensor) -> Tensor:
        """A tensor on the GPU whose values are these; to be called inside."""
        fake = torch.empty(value.shape, dtype=value.dtype, device=GPU)
        self._values[fake] = value
        return fake

    def begin(self) -> int:
        """Forgets the peak so far. Returns the bytes held now."""
        self.peak = self.held
        return self.held

    def tolist(self, tensor: Tensor) -> list:
        """One wait, where FakeTensor's own asks for each number alone."""
        self.waits[place()] += 1
        value = self._values.get(tensor)
        return [True] * len(tensor) if value is None and tensor.dtype == torch.bool else value.tolist()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, name = kwargs or {}, func._schema.name.removeprefix("aten::")
        if name.startswith("prim::"):
            return func(*args, **kwargs)
        given = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)]
        on_gpu = any(tensor.device.type == GPU for tensor in given)
        if on_gpu and (name in WAITS or (name == "repeat_interleave" and kwargs.get("output_size") is None)):
            self.waits[place()] += 1
        value = self._value(func, name, given, args, kwargs)
        if name == "_local_scalar_dense" and on_gpu:
            if value is None and given[0].dtype != torch.bool:
                raise AssertionError(f"{place()} looks at a number that is not known here")
            return True if value is None else value
        if name == "nonzero" and value is not None:
            made = torch.empty(value.shape, dtype=value.dtype, device=GPU)
        else:
            made = func(*args, **kwargs)
        outputs = [tensor for tensor in tree_leaves(made) if isinstance(tensor, Tensor)]
        values = [None] * len(outputs) if value is None else tree_leaves(value)
        for tensor, its in zip(outputs, values, strict=False):
            self._values.pop(tensor, None)
            if its is not None:
                self._values[tensor] = its
        self._look(name, given, outputs)
        return made

    def _value(self, func: Any, name: str, given: list[Tensor], args: tuple, kwargs: dict) -> Any:
        """What comes of known whole numbers; None where something is not known."""
        values = {id(t): self._values.get(t) if isinstance(t, FakeTensor) else t for t in given}
        if name in UNKNOWN or any(value is None for value in values.values()):
            return None
        if not given and not (kwargs.get("dtype") in (torch.bool, torch.int64) or name == "arange"):
            return None

        def known(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                return values[id(leaf)]
            return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

        with _disable_current_modes():
            value = func(*tree_map(known, args), **tree_map(known, kwargs))
        whole = all(not isinstance(leaf, Tensor) or not leaf.is_floating_point() for leaf in tree_leaves(value))
        return value if whole else None

    def _look(self, name: str, given: list[Tensor], outputs: list[Tensor]) -> None:
        for tensor in outputs:
            if tensor.device.type == GPU:
                self._count(tensor.untyped_storage())
        devices = {tensor.device.type for tensor in given if tensor.dim()}
        if name in ("_to_copy", "copy_"):
            devices |= {tensor.device.type for tensor in outputs}
            if len(devices) > 1:
                self.copies[place()] += 1
        elif len(devices) > 1:
            self.mixed[f"{name} in {place()}"] += 1
        if name in NO_KERNEL or GPU not in {tensor.device.type for tensor in (*given, *outputs)}:
            return
        self.launches += 1
        product = _multiplications(name, given, outputs) if name in PRODUCTS else 0.0
        self.seconds += seconds(name, given, outputs, product)
        if "scaled_dot_product_cudnn" in name and len(given) > 3 and "backward" not in name:
            self.cudnn_with_mask[place()] += 1
        if 2 * product > LARGE:
            self.large_products[str(given[-1].dtype)] += 1
            if given[-1].dtype == torch.float32:
                self.float32_shapes |= {tuple(tensor.shape) for tensor in (*given, *outputs) if tensor.dim()}

    def _count(self, storage: torch.UntypedStorage) -> None:
        super()._count(storage, -(-storage.nbytes() // BLOCK) * BLOCK)


def _multiplications(name: str, given: list[Tensor], outputs: list[Tensor]) -> float:
    if "convolution" in name:
        weight = given[-1]
        return outputs[0].numel() * weight[0].numel()
    left = given[1] if name in ("addmm", "_addmm_activation", "baddbmm") else given[0]
    return outputs[0].numel() * left.shape[-1]


def place() -> str:
    """The innermost line of this project, as file:function."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(ROOT) and not file.startswith(f"{ROOT}tests/fakegpu") and "site-packages" not in file:
            return f"{file.removeprefix(ROOT)}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


@contextlib.contextmanager
def fake_gpu() -> Iterator[Counts]:
    """Inside, tensors on "cuda" have no memory. Policies are to be moved with `moved`."""
    counts = Counts()
    with contextlib.ExitStack() as stack:

        def replaced(owner: Any, name: str, value: Any) -> None:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)

        replaced(F, "scaled_dot_product_attention", attention)
        replaced(F, "rms_norm", rms_norm)
        replaced(F, "silu", silu)
        replaced(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        replaced(torch.cuda, "is_bf16_supported", lambda *_: True)
        replaced(import_utils, "is_fake_tensor", lambda _: False)  # transformers would spare itself its waits
        replaced(FakeTensor, "tolist", lambda tensor: counts.tolist(tensor))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(counts)
        yield counts


def moved(module: nn.Module) -> nn.Module:
    """A module of the meta device on the GPU."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return module._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=GPU))
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's scaled_dot_product_attention with the kernel that torch 2.13 chooses on an H100: cuDNN's where it may
    serve, flash attention without a mask, else the memory-efficient kernel."""
    if torch.is_autocast_enabled(GPU):
        query, key, value = (tensor.to(torch.get_autocast_dtype(GPU)) for tensor in (query, key, value))
    with torch.autocast(GPU, enabled=False):
        with_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
        half, bias = query.dtype != torch.float32, attn_mask
        if enable_gqa:  # flash attention shares keys itself; as the others see it, they are repeated
            key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], 1) for tensor in (key, value))
        if bias is not None:
            if bias.dtype == torch.bool:
                numbers = [torch.full((), number, dtype=query.dtype, device=GPU) for number in (0.0, -torch.inf)]
                bias = torch.where(bias, *numbers)
            if missing := -bias.shape[-1] % 8:  # the kernels want aligned rows
                bias = F.pad(bias, (0, missing))[..., : bias.shape[-1]]
            bias = bias.expand(*query.shape[:-1], key.shape[-2])
        if half and torch.backends.cuda.cudnn_sdp_enabled() and query.shape[-1] <= 128:
            kernel = aten._scaled_dot_product_cudnn_attention
            return kernel(query, key, value, bias, with_gradient, dropout_p, is_causal, False, scale=scale)[0]
        if half and bias is None:
            return aten._scaled_dot_product_flash_attention(
                query, key, value, dropout_p, is_causal, False, scale=scale
            )[0]
        kernel = aten._scaled_dot_product_efficient_attention
        return kernel(query, key, value, bias, with_gradient, dropout_p, is_causal, scale=scale)[0]


def rms_norm(hidden: Tensor, shape: Sequence[int], weight: Tensor, eps: float) -> Tensor:
    """torch's: one kernel on a GPU, and in float32 under autocast."""
    if torch.is_autocast_enabled(GPU):
        hidden, weight = hidden.float(), weight.float()
    with torch.autocast(GPU, enabled=False):
        return fused_rms_norm(hidden, shape, weight, eps)


def silu(hidden: Tensor, inplace: bool = False) -> Tensor:
    """torch's, whose gradient is one kernel on a GPU; without CUDA's, torch takes it apart into seven."""
    return aten.silu_(hidden) if inplace else _Silu.apply(hidden)


class _Silu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        ctx.save_for_backward(hidden)
        return aten.silu(hidden)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return aten.sigmoid_backward(gradient, *ctx.saved_tensors)  # as many bytes read and written
