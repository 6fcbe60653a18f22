"""Weight files of reward models: found or downloaded, read safely, checked against the model before they go into it."""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file

from rewards.contract.needs import WEIGHT_SUFFIXES
from uniar.errors import UserError
from uniar.reading.files import HUB_ID, reason_of, user_path


def find_file(where: str | Path, *names: str) -> Path:
    """The first of the files `names`. `where` is a folder that holds one, a hub id whose file is downloaded at first
    use, or the file itself, whatever it is called.

    Raises UserError where there is none.
    """
    path = user_path(where)
    if path.is_file():
        return path
    if path.is_dir():
        found = next((path / name for name in names if (path / name).is_file()), None)
        if found is None:
            raise UserError(f"folder {path} has no {' or '.join(names)}.")
        return found
    if path.suffix in (*WEIGHT_SUFFIXES, ".json") or not HUB_ID.fullmatch(str(where)):
        raise UserError(f"weight file {path} does not exist.")
    for name in names:
        try:
            return Path(hf_hub_download(str(where), name))
        except LocalEntryNotFoundError as error:  # no network, or none allowed; an EntryNotFoundError too
            raise _not_downloaded(where, name, error) from error
        except EntryNotFoundError as error:
            if name == names[-1]:
                raise UserError(f"{where} on the hub has no {' or '.join(names)}.") from error
        except (HFValidationError, HfHubHTTPError, OSError) as error:
            raise _not_downloaded(where, name, error) from error
    raise ValueError("no file was named.")


def _not_downloaded(where: str | Path, name: str, error: Exception) -> UserError:
    return UserError(
        f"{where} is neither a file nor a folder here, and {name} cannot be downloaded from it as a hub id: "
        f"{reason_of(error)}. Without a network, name a local file."
    )


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.safetensors` file, or of a `.pt`, `.pth` or `.bin` file (read with `weights_only=True`: no
    code in it runs). A training checkpoint's `state_dict` entry and a `module.` prefix are unwrapped.

    Raises UserError when the file is missing or is not such a file.
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
        raise UserError(f"weight file {path} cannot be read as weights: {reason_of(error)}") from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise UserError(f"weight file {path} holds a {type(found).__name__}, a mapping of names to tensors is needed.")
    if found and all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): value for name, value in found.items()}
    return dict(found)


def check_weights(
    path: str | Path,
    found: Mapping[str, torch.Tensor],
    model: torch.nn.Module,
    what: str,
    name_in_file: Callable[[str], str] = str,
) -> None:
    """Raises UserError naming the first weight, in the model's order, that the file lacks or has in another shape; else
    the first one that the model does not know. `name_in_file` says how the file calls a weight of the model."""
    expected = {name_in_file(name): tensor for name, tensor in model.state_dict().items()}
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


def load_weights(
    path: str | Path,
    found: Mapping[str, torch.Tensor],
    model: torch.nn.Module,
    what: str,
    name_in_file: Callable[[str], str] = str,
) -> None:
    """Puts `found` into a model that was built on torch's meta device (so that nothing is initialised at random first),
    once `check_weights` finds nothing wrong. The buffers `position_ids`, which no file needs to hold, are made anew."""
    check_weights(path, found, model, what, name_in_file)
    model.load_state_dict({name: found[name_in_file(name)] for name in model.state_dict()}, assign=True)
    for module in model.modules():
        buffer = getattr(module, "position_ids", None)
        if isinstance(buffer, torch.Tensor) and buffer.is_meta:
            module.position_ids = torch.arange(buffer.shape[-1]).expand(buffer.shape)
