"""Weight files of reward models: read safely, checked against the model before anything is loaded into it."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from uniar.errors import UserError


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.safetensors` file, or of a `.pt`, `.pth` or `.bin` file (read with `weights_only=True`: no
    code in it runs). A training checkpoint's `state_dict` entry and a `module.` prefix are unwrapped.

    Raises UserError when the file is missing or is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"weight file {path} does not exist.")
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"weight file {path} cannot be read as weights: {reason}") from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise UserError(f"weight file {path} holds a {type(found).__name__}, a mapping of names to tensors is needed.")
    if found and all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): value for name, value in found.items()}
    return dict(found)


def check_weights(path: str | Path, found: Mapping[str, torch.Tensor], model: torch.nn.Module, what: str) -> None:
    """Raises UserError naming the first weight, in the model's order, that the file lacks or has in another shape; else
    the first one that the model does not know."""
    expected = model.state_dict()
    for name, tensor in expected.items():
        if name not in found:
            raise UserError(f"weight file {path} is not for {what}: it lacks {name!r} {tuple(tensor.shape)}.")
        if found[name].shape != tensor.shape:
            raise UserError(
                f"weight file {path} is not for {what}: {name!r} is {tuple(found[name].shape)}, "
                f"{tuple(tensor.shape)} is needed."
            )
    for name in found:
        if name not in expected:
            raise UserError(f"weight file {path} is not for {what}, which has no {name!r}.")
