"""What a position of the AR model may see, which kernels may serve it, in which precision: for replay, engine and
answers alike.

Shapes: B rows · Q new positions · S positions that they may see.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.masking_utils import create_causal_mask


@contextmanager
def policy_kernels() -> Iterator[None]:
    """Inside, torch's fused attention is any but cuDNN's.

    That is torch's first choice on recent GPUs, plans anew for half a second at each new shape, and has given NaN
    gradients with a mask (pytorch/pytorch#196678). Backward passes use what the forward pass has chosen.
    """
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        yield


def without_autocast(hidden: Tensor) -> AbstractContextManager[object]:
    """Inside, `hidden` is computed with in its own precision."""
    kind = hidden.device.type  # `plan` computes on the meta device, which has no autocast
    active = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if active else nullcontext()


def without_empty_rows(visible: Tensor) -> Tensor:
    """(…, Q, S) bool, what each position sees → the same, but that one that sees nothing sees everything.

    It stands on the padding and no one reads it. A softmax over nothing is 0 with some kernels and NaN with others, and
    a NaN spreads: it times a weight of 0 is NaN.
    """
    return visible | ~visible.any(-1, keepdim=True)


def causal_mask(config: Any, inputs_embeds: Tensor, attention_mask: Tensor | None, past_key_values: Any = None) -> Any:
    """transformers' `create_causal_mask` in the form that the attention of `config` wants, without empty rows.

    attention_mask: (B, S), 0 on the padding. Returns None where the kernel's own causality is all that is needed; on a
    GPU that is not looked for, as the host would wait, and as widths are rounded up nearly every batch has padding.
    """
    waits = inputs_embeds.device.type != "cpu" and config._attn_implementation == "sdpa"
    if waits and past_key_values is None and attention_mask is not None and attention_mask.ndim == 2:
        slots = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        return without_empty_rows((slots[:, None] >= slots) & attention_mask.bool()[:, None, None])
    mask = create_causal_mask(config, inputs_embeds, attention_mask, past_key_values)
    is_visible = isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.ndim == 4
    return without_empty_rows(mask) if is_visible else mask
