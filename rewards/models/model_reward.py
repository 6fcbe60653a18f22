"""What rewards with a torch model have in common: device and precision, weights read once, batches."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeVar

import torch
from torch import nn

from rewards.contract.base import Reward
from uniar.errors import UserError

Precision = Literal["float32", "bfloat16", "float16"]
"""Type of weights and activations."""

Item = TypeVar("Item")


def default_device() -> torch.device:
    """Where models run that name no device: this process's GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class ModelReward(Reward, ABC):
    """A reward whose model a subclass makes in `build`.

    Args:
        batch_size: samples that go through the model at a time.
        device: where it runs; None follows the trainer (a GPU if there is one).
        dtype: of weights and activations.

    Raises UserError for fewer than one sample and for a device that torch does not know.
    """

    def __init__(self, batch_size: int, device: str | None, dtype: Precision):
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; at least 1 is needed.")
        self.batch_size, self.dtype = batch_size, getattr(torch, dtype)
        try:
            self._own_device = None if device is None else torch.device(device)
        except RuntimeError as error:
            raise UserError(f"device is {device!r}; 'cpu', 'cuda' or 'cuda:N' is needed.") from error
        self._device = self._own_device or default_device()
        self._model: nn.Module | None = None

    @abstractmethod
    def build(self) -> nn.Module:
        """The model with its weights, on the CPU. Raises UserError for weights that are missing or wrong."""

    def load(self) -> None:
        if self._model is None:
            self._model = self.build().eval().requires_grad_(False).to(self._device, self.dtype)

    def to(self, device: str | torch.device) -> None:
        """Moves the weights. A device of its own, if it has one, stands for any device but the CPU."""
        device = torch.device(device)
        self._device = self._own_device if self._own_device is not None and device.type != "cpu" else device
        if self._model is not None:
            self._model.to(self._device)

    def batches(self, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
        """The items, `batch_size` at a time."""
        for start in range(0, len(items), self.batch_size):
            yield items[start : start + self.batch_size]

    @torch.inference_mode()
    def encoded(self, items: Sequence[Item], encode: Callable[[Sequence[Item]], torch.Tensor]) -> torch.Tensor:
        """(len(items), …) float32 on the CPU, `encode` having seen `batch_size` items at a time."""
        return torch.cat([encode(batch).float().cpu() for batch in self.batches(items)])

    def encoded_once(self, texts: Sequence[str], encode: Callable[[Sequence[str]], torch.Tensor]) -> torch.Tensor:
        """`encoded` for texts that repeat, as the prompt of a group does: each different one goes through once."""
        distinct = list(dict.fromkeys(texts))
        return self.encoded(distinct, encode)[[distinct.index(text) for text in texts]]


def numbers_only(scores: torch.Tensor) -> torch.Tensor:
    """The scores. Raises FloatingPointError where one is NaN or infinite: a NaN would say that the reward does not
    apply, and a model that overflows would go unnoticed."""
    if not scores.isfinite().all():
        raise FloatingPointError("the model gave NaN or an infinity; with dtype float16, try bfloat16 or float32")
    return scores


def cosines(images_BD: torch.Tensor, texts_BD: torch.Tensor) -> torch.Tensor:
    """(B,) cosines of B pairs of float32 features."""
    return (nn.functional.normalize(images_BD, dim=-1) * nn.functional.normalize(texts_BD, dim=-1)).sum(dim=1)
