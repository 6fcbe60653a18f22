"""A second set of the trained weights (their average, an older policy), shared among the ranks: each holds its slices.

What a rank owns of a weight depends on the engine (`owned_slice`), so copies and averages are local. Whole weights are
put together, one at a time, only when the set takes the model's place.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rl.distributed.engine import Slice, gathered_parameter, owned_slice, whole_shape
from uniar.errors import UserError
from uniar.weight_files import LazyTensors

if TYPE_CHECKING:
    from accelerate import Accelerator


class WeightSlices:
    """This rank's slices of a set of weights, by name. Methods that say so are collective: every rank calls them."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], slices: dict[str, Slice], accelerator: "Accelerator"):
        self._parameters, self._slices, self._accelerator = parameters, slices, accelerator

    @classmethod
    def copied(
        cls,
        parameters: Mapping[str, nn.Parameter],
        accelerator: "Accelerator",
        *,
        device: torch.device | str | None = None,
        float32: bool = True,
    ) -> "WeightSlices":
        """A copy of weights as they are.

        Args:
            parameters: name → weight of the model that the engine has prepared.
            device: where the slices wait; None: where the weights are.
            float32: copies what the optimizer updates, in float32; else the weights as the model computes with them.
        """
        made = cls(parameters, {}, accelerator)
        with torch.no_grad():
            for name, parameter in parameters.items():
                start, values = made._owned(parameter, float32)
                kept = torch.empty_like(values, device=device or values.device).copy_(values)
                made._slices[name] = Slice(start, kept)
        return made

    @property
    def bytes(self) -> int:
        return sum(part.values.nbytes for part in self._slices.values())

    @torch.no_grad()
    def approach(self, weight: float) -> None:
        """Moves each value towards the model's by `weight` of the difference, in float32."""
        for name, (_, values) in self._slices.items():
            _, current = self._owned(self._parameters[name], float32=True)
            values.lerp_(current.to(values.device), weight)

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Gives the model these weights, rounded to its type; what the optimizer holds stays. Collective."""
        for name, parameter in self._parameters.items():
            with gathered_parameter(parameter, changes=True):
                (start, values), device = self._slices[name], self._accelerator.device
                flat = torch.zeros(parameter.numel(), dtype=values.dtype, device=device)
                flat[start : start + len(values)] = values.to(device)
                if self._accelerator.num_processes > 1:
                    torch.distributed.all_reduce(flat)  # where one rank has an element, the others have 0
                parameter.data.copy_(flat.view(parameter.shape))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """These weights are the model's inside the block, and its own come back to the bit behind it. Collective.

        After an error they do not come back: it may be this rank's alone, which would wait for the others instead of
        ending the run.
        """
        own = WeightSlices.copied(self._parameters, self._accelerator, float32=False)
        self.copy_to_model()
        yield
        own.copy_to_model()

    def save(self, folder: Path) -> None:
        """Writes this rank's file."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: part.values.cpu() for name, part in self._slices.items()}
        places = {
            name: {"start": part.start, "shape": list(whole_shape(self._parameters[name]))}
            for name, part in self._slices.items()
        }
        file = folder / _file_name(self._accelerator.process_index)
        ranks = str(self._accelerator.num_processes)
        save_file(tensors, file, {"format": "pt", "ranks": ranks, "places": json.dumps(places)})

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Reads this rank's slices, whatever number of ranks wrote them. Raises UserError for files that do not fit."""
        files = SlicedFiles(folder)
        for name, part in self._slices.items():
            shape = tuple(whole_shape(self._parameters[name]))
            if files.shapes.get(name) != shape:
                raise UserError(f"{folder} has {name} as {files.shapes.get(name)}, the model as {shape}.")
            part.values.copy_(files.read(name, part.start, part.start + len(part.values)))

    def _owned(self, parameter: nn.Parameter, float32: bool) -> Slice:
        rank, ranks = self._accelerator.process_index, self._accelerator.num_processes
        return owned_slice(parameter, rank, ranks, float32=float32)


class SlicedFiles(LazyTensors):
    """Whole weights out of the files that ranks have saved, each put together at its look-up.

    Raises UserError for a folder without them, damaged ones, and slices that do not make up a weight.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = self.shapes = dict[str, tuple[int, ...]]()
        self._slices: dict[str, list[tuple[int, int, Path]]] = {}
        rank, ranks = 0, 1
        while rank < ranks:  # each file says how many there are; earlier versions' do not
            file = folder / _file_name(rank)
            if not file.is_file():
                raise UserError(f"{folder} has no {file.name}: a rank's file is missing.")
            try:
                with safe_open(file, "pt") as tensors:
                    rank, metadata = rank + 1, tensors.metadata()
                    ranks = max(ranks, int(metadata.get("ranks", rank + (folder / _file_name(rank)).is_file())))
                    for name, place in json.loads(metadata["places"]).items():
                        count = tensors.get_slice(name).get_shape()[0]
                        self.shapes[name] = tuple(place["shape"])
                        self._slices.setdefault(name, []).append((place["start"], place["start"] + count, file))
            except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                raise UserError(f"{file} cannot be read as slices of weights: {error}.") from error

    def __getitem__(self, name: str) -> Tensor:
        shape = self.shapes[name]
        return self.read(name, 0, torch.Size(shape).numel()).view(shape)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements start to stop of a flattened weight."""
        parts, reached = [], start
        for first, last, file in sorted(self._slices[name]):
            if first <= reached < min(last, stop):
                with safe_open(file, "pt") as tensors:
                    parts.append(tensors.get_slice(name)[reached - first : min(last, stop) - first])
                reached = min(last, stop)
        if reached < stop:
            raise UserError(f"{self.folder} lacks elements {reached} to {stop} of {name}: a rank's file is missing.")
        return torch.cat(parts) if parts else torch.empty(0)


def _file_name(rank: int) -> str:
    return f"{rank:05d}.safetensors"
