"""A checkpoint that will run on a device in a type: found and looked over, then loaded part by part."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from uniar.checkpoint import decoder_weight_files, load_processor, require_model_type, resolve_checkpoint
from uniar.configuration_uniar import UniARConfig
from uniar.decoder_sizes import DecoderSizes
from uniar.errors import UserError
from uniar.fingerprint import fingerprint
from uniar.inspection import inspect_checkpoint
from uniar.modeling_decoder import UniARVisualDecoder
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.placement import DTYPES, choose_precision
from uniar.presets.build import preset_path
from uniar.weight_files import weight_files

_PRESET = "preset:"


@dataclass(frozen=True)
class PlacedCheckpoint:
    """Nothing is loaded yet; each `load_…` reads its part."""

    name: str
    """as the user called it"""
    folder: Path
    device: torch.device
    dtype: str
    attention: str
    show_progress: bool = False

    @classmethod
    def find(
        cls,
        name: str,
        device: torch.device,
        dtype: str,
        attention: str,
        *,
        decoder: bool,
        folder: Path | None = None,
        show_progress: bool = False,
    ) -> "PlacedCheckpoint":
        """decoder: whether it must have one. folder: where it is, by default where `name` says: a folder, a hub id or
        preset:NAME. Raises UserError for one that is not there or lacks a part, and for an unusable attention."""
        precision = choose_precision(device, dtype, attention)
        folder = folder or preset_named(name) or resolve_checkpoint(name)
        inspect_checkpoint(folder, decoder=decoder)
        return cls(name, folder, device, *precision, show_progress)

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
                self.folder, dtype=DTYPES[self.dtype], attn_implementation=self.attention
            )
            return model.to(self.device).eval()

    def load_processor(self) -> Any:
        return load_processor(self.folder)

    def load_decoder(self) -> UniARVisualDecoder:
        with loading_bars(self.show_progress), memory_advice("the visual decoder", "choose a GPU with more memory."):
            return UniARVisualDecoder.from_pretrained(self.folder, device=self.device, torch_dtype=DTYPES[self.dtype])


def preset_named(name: str) -> Path | None:
    """The folder of preset:NAME; None for another name. Raises UserError for a preset that there is not."""
    return preset_path(name.removeprefix(_PRESET)) if name.startswith(_PRESET) else None


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
