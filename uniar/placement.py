"""Where a model runs, and in which type."""

import os

import torch

from uniar.errors import UserError
from uniar.reading.files import reason_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def choose_device(name: str) -> torch.device:
    """`auto`: the GPU if there is one. Raises UserError for a device that is not here, or that holds no tensor."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # of several processes each has a GPU of its own
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    there = ["cpu"]
    if torch.cuda.is_available():
        there += ["cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    elif (other := torch.accelerator.current_accelerator(check_available=True)) is not None:
        there.append(other.type)
    if name not in there:
        raise UserError(f"--device {name} is not here: there is {', '.join(there)}; auto takes the first GPU.")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"--device {name} cannot be used here ({reason_of(error)}); auto takes what there is."
        ) from error
    return device


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 have kernels there. A CPU needs AVX-512 for them; others take ten to a hundred times
    as long as for float32."""
    return device.type != "cpu" or (
        torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def choose_precision(device: torch.device, dtype: str, attention: str) -> tuple[str, str]:
    """The type of weights and the attention, with `auto` settled. Raises UserError for an attention that does not run
    so."""
    from transformers.utils import is_flash_attn_2_available

    if dtype == "auto":
        dtype = "float32" if device.type == "cpu" else "bfloat16"
    flash_runs = device.type == "cuda" and dtype != "float32"
    if attention == "auto":
        attention = "flash_attention_2" if flash_runs and is_flash_attn_2_available() else "sdpa"
    elif attention == "flash_attention_2" and not flash_runs:
        raise UserError(f"flash_attention_2 runs on a GPU in bfloat16, not on {device} in {dtype}; use sdpa.")
    return dtype, attention
