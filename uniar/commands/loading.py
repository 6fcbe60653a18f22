"""Which checkpoint, device, dtype and attention a command runs on, and loading it."""

import argparse
import contextlib
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from uniar.checkpoint import (
    decoder_weight_files,
    load_processor,
    require_model_type,
    resolve_checkpoint,
)
from uniar.commands.processes import Processes
from uniar.configuration_uniar import UniARConfig
from uniar.decoder_sizes import DecoderSizes
from uniar.errors import UserError
from uniar.fingerprint import fingerprint
from uniar.inspection import inspect_checkpoint
from uniar.modeling_decoder import UniARVisualDecoder
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.placement import DTYPES, choose_device, choose_precision
from uniar.presets.build import preset_path
from uniar.weight_files import weight_files

PRESET_PREFIX = "preset:"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is found and looked over, nothing loaded yet; each `load_…` reads its part."""

    name: str
    """as the user called it"""
    folder: Path
    device: torch.device
    dtype_name: str
    attention: str
    show_progress: bool

    @classmethod
    def find(cls, arguments: argparse.Namespace, *, decoder: bool) -> "Checkpoint":
        """Raises UserError for a checkpoint that is not there or lacks a part, and an unusable device or attention."""
        device = choose_device(arguments.device)
        dtype_name, attention = choose_precision(device, arguments.dtype, arguments.attention)
        if arguments.model.startswith(PRESET_PREFIX):
            folder = preset_path(arguments.model.removeprefix(PRESET_PREFIX))
        else:
            folder = resolve_checkpoint(arguments.model)
        inspect_checkpoint(folder, decoder=decoder)
        alone = Processes.here().rank == 0
        show_progress = alone and sys.stderr.isatty() and not arguments.quiet  # bars are for a terminal
        return cls(arguments.model, folder, device, dtype_name, attention, show_progress)

    def config(self) -> UniARConfig:
        """Raises UserError for a file that is not a UniAR configuration."""
        require_model_type(self.folder, UniARConfig.model_type)
        return UniARConfig.from_pretrained(self.folder)

    def sizes(self) -> tuple[int, int]:
        """Pixels per visual token, and the side of a drawing for which no size is given."""
        return self.config().vision_config.pixels_per_token, DecoderSizes.of_checkpoint(self.folder).default_side

    def fingerprint(self) -> str:
        """What tells its weights apart (the decoder's where it is there)."""
        files = weight_files(self.folder)
        with contextlib.suppress(UserError):  # chat does without a decoder
            files += decoder_weight_files(self.folder)
        return fingerprint(self.folder, files)

    def load_model(self) -> UniARForConditionalGeneration:
        with loading_bars(self.show_progress), memory_advice("the AR model", "choose a GPU with more memory."):
            model = UniARForConditionalGeneration.from_pretrained(
                self.folder, dtype=DTYPES[self.dtype_name], attn_implementation=self.attention
            )
            return model.to(self.device).eval()

    def load_processor(self) -> Any:
        return load_processor(self.folder)

    def load_decoder(self) -> UniARVisualDecoder:
        with loading_bars(self.show_progress), memory_advice("the visual decoder", "choose a GPU with more memory."):
            return UniARVisualDecoder.from_pretrained(
                self.folder, device=self.device, torch_dtype=DTYPES[self.dtype_name]
            )


@contextmanager
def loading_bars(shown: bool) -> Iterator[None]:
    """Whether transformers and diffusers draw their progress bars; as it was before, afterwards."""
    switches = [transformers.utils.logging, diffusers.utils.logging]
    before = [switch.is_progress_bar_enabled() for switch in switches]
    try:
        for switch in switches:
            (switch.enable_progress_bar if shown else switch.disable_progress_bar)()
        yield
    finally:
        for switch, was_shown in zip(switches, before, strict=True):
            (switch.enable_progress_bar if was_shown else switch.disable_progress_bar)()


@contextmanager
def memory_advice(what: str, advice: str) -> Iterator[None]:
    """A GPU that runs out of memory, as a UserError: `what` did not fit, and what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(f"the GPU's memory does not hold {what}; {advice}") from error


def check_number(option: str, value: float, lowest: float, *, above: bool = False) -> None:
    """Raises UserError unless `value` is finite and at least `lowest` (with `above`: more than it)."""
    if not math.isfinite(value) or value < lowest or (above and value == lowest):
        finite = "finite, " if value == math.inf else ""
        raise UserError(
            f"{option} is {value}; it must be {finite}{'above ' if above else ''}{lowest}{'' if above else ' or more'}."
        )
