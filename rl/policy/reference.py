"""The reference policy that the KL term measures from."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rl.distributed.engine import gathered_parameter, sharded_beside_policy
from rl.distributed.offloaded_weights import OffloadedWeights
from rl.distributed.weight_slices import WeightSlices

if TYPE_CHECKING:
    from accelerate import Accelerator


class PolicyItself:
    """The policy's own weights, but for adapters."""

    text_head = None
    """the output layer of texts, where it is not the policy's own; no adapter is put on that"""

    def fetch(self, accelerator: "Accelerator") -> None:
        """Nothing is to be fetched: these are the policy's own weights."""


class AdapterOff(PolicyItself):
    """LoRA's reference: the same model with its adapters switched off. Costs no memory."""

    @contextmanager
    def ready(self, model: nn.Module, accelerator: "Accelerator") -> Iterator[Any]:
        with accelerator.unwrap_model(model).disable_adapter():
            yield model


class AdapterCopy(PolicyItself):
    """LoRA's reference where it is refreshed: the same model with older adapters in place of its own."""

    _adapters: WeightSlices
    """from `prepare` on"""

    def prepare(self, trained: Mapping[str, nn.Parameter], accelerator: "Accelerator") -> None:
        """Called once the engine has the policy, whose adapters are `trained`."""
        self._adapters = WeightSlices.copied(trained, accelerator)

    @contextmanager
    def ready(self, model: nn.Module, accelerator: "Accelerator") -> Iterator[Any]:
        with self._adapters.in_place():
            yield model

    def refresh(self, trained: Mapping[str, nn.Parameter], mix: float) -> None:
        """Moves the reference's adapters to the policy's."""
        self._adapters.approach(mix)

    def save(self, folder: Path) -> None:
        self._adapters.save(folder)

    def load(self, folder: Path) -> None:
        self._adapters.load(folder)


class FrozenCopy:
    """A second model with the weights that training started from, until it is refreshed.

    With `keep_on_device` false it waits on the CPU and is copied to the device for each use; ZeRO-3 shards it instead.
    """

    def __init__(self, model: nn.Module, *, keep_on_device: bool = True) -> None:
        self.model = model.requires_grad_(False).eval()
        self.keep_on_device = keep_on_device
        self._accelerator: Accelerator | None = None
        self._offloaded: OffloadedWeights | None = None
        self._trained: dict[str, nn.Parameter] = {}

    @property
    def text_head(self) -> nn.Module:
        """The output layer of texts, on the training device from its first use on, whatever else is not. Not to be
        asked for inside `ready`."""
        head = getattr(self.model, "module", self.model).lm_head
        if self._offloaded is not None:
            self._offloaded.keep(head)
        return head

    def fetch(self, accelerator: "Accelerator") -> None:
        """Begins to copy weights that wait on the CPU to the device, and returns at once; `ready` waits for them."""
        self._place(accelerator)
        if self._offloaded is not None:
            self._offloaded.fetch()

    @contextmanager
    def ready(self, model: nn.Module, accelerator: "Accelerator") -> Iterator[Any]:
        self._place(accelerator)
        if self._offloaded is None:
            yield self.model
            return
        self._offloaded.use()
        try:
            yield self.model
        finally:
            self._offloaded.release()

    def prepare(self, trained: Mapping[str, nn.Parameter], accelerator: "Accelerator") -> None:
        """Called once the engine has the policy, where the weights under the names of `trained` are refreshed."""
        own = dict(self.model.named_parameters())
        self._trained = {name: own[name] for name in trained}
        self._place(accelerator)

    @torch.no_grad()
    def refresh(self, trained: Mapping[str, nn.Parameter], mix: float) -> None:
        """reference ← (1 − mix) · reference + mix · policy, computed in float32. Collective under ZeRO-3."""
        for name, reference in self._trained.items():
            with gathered_parameter(reference, changes=True), gathered_parameter(trained[name]):
                policy = trained[name].data.to(reference.device, torch.float32)
                reference.data.copy_(reference.data.float().lerp_(policy, mix))

    def save(self, folder: Path) -> None:
        self._slices().save(folder)

    def load(self, folder: Path) -> None:
        slices = self._slices()
        slices.load(folder)
        slices.copy_to_model()

    def _slices(self) -> WeightSlices:
        return WeightSlices.copied(self._trained, self._accelerator, device="cpu", float32=False)

    def _place(self, accelerator: "Accelerator") -> None:
        if self._accelerator is not None:
            return
        self._accelerator = accelerator
        if (sharded := sharded_beside_policy(self.model, accelerator)) is not None:
            # It cannot be moved, and takes 1/ranks of its size on each.
            self.model = sharded
        elif self.keep_on_device:
            self.model.to(accelerator.device)
        else:
            self._offloaded = OffloadedWeights(self.model, accelerator.device)


Reference = AdapterOff | AdapterCopy | FrozenCopy
