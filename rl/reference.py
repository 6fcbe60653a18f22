"""The reference policy that the KL term measures from."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from accelerate import Accelerator


class AdapterOff:
    """LoRA's reference: the same model with its adapters switched off. Costs no memory."""

    @contextmanager
    def ready(self, model: nn.Module, accelerator: "Accelerator") -> Iterator[Any]:
        with accelerator.unwrap_model(model).disable_adapter():
            yield model


class FrozenCopy:
    """A second model with the weights that training started from.

    With `keep_on_device` false it waits on the CPU and is copied to the device for each use.
    """

    def __init__(self, model: nn.Module, *, keep_on_device: bool = True) -> None:
        self.model = model.requires_grad_(False).eval()
        self.keep_on_device = keep_on_device
        self._prepared = False

    @contextmanager
    def ready(self, model: nn.Module, accelerator: "Accelerator") -> Iterator[Any]:
        if not self._prepared:
            self._prepare(accelerator)
        if self.keep_on_device:
            yield self.model
            return
        self.model.to(accelerator.device)
        try:
            yield self.model
        finally:
            self.model.to("cpu")

    def _prepare(self, accelerator: "Accelerator") -> None:
        plugin = accelerator.state.deepspeed_plugin
        if plugin is not None and plugin.zero_stage == 3:
            from trl.models import prepare_deepspeed

            # Sharded over the ranks like the policy: it cannot be moved, and takes 1/ranks of its size on each.
            self.model, self.keep_on_device = prepare_deepspeed(self.model, accelerator), True
        elif self.keep_on_device:
            self.model.to(accelerator.device)
        self._prepared = True
