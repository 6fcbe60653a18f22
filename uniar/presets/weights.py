"""Random weights for the small presets: drawn by parameter name, so that a seed means the same model everywhere."""

import hashlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def randomize(module: nn.Module, seed: int, part: str, gains: Mapping[str, float] | None = None) -> None:
    """Fills every parameter in place: norm scales with 1, biases with 0, the rest from N(0, (gain/√fan_in)²).

    A tensor's generator is seeded by (seed, `part`, parameter name). So neither the global random state nor the order
    in which a library version creates its modules has a say. `gains` maps a piece of a parameter name to its gain (the
    last piece that matches wins, 1 without one). An embedding's gain is the standard deviation of its entries.
    Raises ValueError for a piece that matches nothing, which would be a gain without effect.
    """
    gains = gains or {}
    unused = set(gains)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            matching = [piece for piece in gains if piece in name]
            unused.difference_update(matching)
            if parameter.ndim == 1:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
                continue
            gain = gains[matching[-1]] if matching else 1.0
            scale = gain if _is_embedding(module, name) else gain / math.sqrt(parameter[0].numel())
            parameter.copy_(_draw(parameter, f"{seed}/{part}/{name}") * scale)
    if unused:
        raise ValueError(f"no parameter of {part} has {sorted(unused)} in its name.")


def centre_rows(weight: Tensor) -> None:
    """Takes the mean off each row (output unit), in place.

    What GELU and SiLU add to all their outputs alike then cancels: the layer's output varies around 0 instead of
    around a random constant that would be the same for every image.
    """
    with torch.no_grad():
        flat = weight.flatten(1)
        weight.sub_(flat.mean(1).view(-1, *[1] * (weight.ndim - 1)))


def _is_embedding(module: nn.Module, name: str) -> bool:
    return isinstance(module.get_submodule(name.rpartition(".")[0]), nn.Embedding)


def _draw(like: Tensor, key: str) -> Tensor:
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1)
    return torch.randn(like.shape, generator=generator)
