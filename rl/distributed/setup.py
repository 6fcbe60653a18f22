"""What has to happen before the Trainer when several processes train together."""

import os

import torch


def world_size() -> int:
    """Number of processes, as every launcher (torchrun, deepspeed, accelerate) puts it into the environment."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this is the process that speaks for all, known before any process group exists."""
    return os.environ.get("RANK", "0") == "0"


def local_device() -> torch.device:
    """This process's accelerator, known before any process group exists."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return torch.device("cpu")
    return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", "0")))


def use_local_device() -> None:
    """Makes this process's accelerator the current one, where models go that name no device of their own."""
    if torch.accelerator.is_available():
        torch.accelerator.set_device_index(local_device().index)
