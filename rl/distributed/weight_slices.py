"""A second set of the trained weights (their average, an older policy), shared among the ranks: each holds its slices.

What a rank owns of a weight depends on the engine: an equal part of it on one process and under DDP; under ZeRO-1 and
ZeRO-2 what its optimizer owns, of the float32 weights where the policy is bfloat16; under ZeRO-3 the shard. So copies
and averages are local. Whole weights are put together, one at a time, only when the set takes the model's place.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from uniar.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator


class Slice(NamedTuple):
    """Consecutive elements of a flattened weight."""

    start: int
    values: Tensor
    """(n,); empty where other ranks own the whole weight"""


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
            name: {"start": part.start, "shape": list(_shape(self._parameters[name]))}
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
            shape = tuple(_shape(self._parameters[name]))
            if files.shapes.get(name) != shape:
                raise UserError(f"{folder} has {name} as {files.shapes.get(name)}, the model as {shape}.")
            part.values.copy_(files.read(name, part.start, part.start + len(part.values)))

    def _owned(self, parameter: nn.Parameter, float32: bool) -> Slice:
        """What this rank owns of a weight: a view of it, or a converted copy."""
        rank, ranks = self._accelerator.process_index, self._accelerator.num_processes
        if hasattr(parameter, "ds_tensor"):
            shard = parameter.ds_tensor
            if float32 and parameter.requires_grad:
                from deepspeed.utils import safe_get_local_fp32_param

                shard = safe_get_local_fp32_param(parameter)
            start = rank * parameter.ds_tensor.numel()
            values = shard[: max(0, parameter.ds_numel - start)]  # the last shard is padded
            return Slice(start, values.float() if float32 else values)
        if float32 and hasattr(parameter, "_hp_mapping"):
            if parameter._hp_mapping is None:
                return Slice(0, torch.empty(0, device=parameter.device))
            values = parameter._hp_mapping.get_hp_fragment().flatten().float()
            return Slice(parameter._hp_mapping.lp_fragment_address.start, values)
        each = -(-parameter.numel() // ranks)
        start = min(rank * each, parameter.numel())
        values = parameter.data.flatten()[start : start + each]
        return Slice(start, values.float() if float32 else values)


class SlicedFiles(Mapping[str, Tensor]):
    """Whole weights out of the files that ranks have saved, each put together at its look-up.

    Raises UserError for a folder without them, damaged ones, and slices that do not make up a weight.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
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

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the weight
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

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


def _shape(parameter: nn.Parameter) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)


def gathered_parameter(parameter: nn.Parameter, *, changes: bool = False) -> AbstractContextManager:
    """Under ZeRO-3, a weight that is whole inside the block; with `changes`, what is written to it there is kept.
    Collective."""
    if not hasattr(parameter, "ds_tensor"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if changes else None)
