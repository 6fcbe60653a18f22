"""The model of a benchmark: found and looked over first, loaded where something is left to draw."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from rl.config.model import ModelSection
from rl.data.prompts import PromptRecord
from rl.policy.evaluated import NamedModel, named_model
from rl.policy.samples import DrawSettings
from uniar.decoder_sizes import DecoderSizes
from uniar.errors import UserError
from uniar.fingerprint import fingerprint
from uniar.placed_checkpoint import PlacedCheckpoint, preset_named
from uniar.reading.prompt_text import check_text, reserved_tokens

if TYPE_CHECKING:
    from uniar.modeling_decoder import UniARVisualDecoder
    from uniar.modeling_uniar import UniARForConditionalGeneration


@dataclass(frozen=True)
class BenchmarkModel:
    """A checkpoint that can draw, on one device."""

    named: NamedModel
    placed: PlacedCheckpoint
    """its source"""

    @classmethod
    def find(cls, name: str, device: torch.device, dtype: str, attention: str) -> "BenchmarkModel":
        """An exported folder, a hub id, a run's checkpoint-N, an adapter, or preset:NAME. Raises UserError for one that
        is not there or lacks a part."""
        preset = preset_named(name)
        named = named_model(name) if preset is None else NamedModel(preset)
        return cls(named, PlacedCheckpoint.find(name, device, dtype, attention, decoder=True, folder=named.source))

    @property
    def name(self) -> str:
        """As the user called it."""
        return self.placed.name

    @property
    def dtype(self) -> str:
        return self.placed.dtype

    @property
    def fingerprint(self) -> str:
        """What tells its weights apart."""
        files, trained = self.placed.fingerprint(), self.named.trained
        if trained is None:
            return files
        own = [file for file in trained.rglob("*") if file.suffix in (".safetensors", ".pt", ".bin")]
        return f"{files}+{fingerprint(trained, own)}"

    def check(self, records: Sequence[PromptRecord], settings: DrawSettings) -> Any:
        """Its processor. Raises UserError for a size that it does not draw and for a prompt with one of its tokens."""
        sizes = DecoderSizes.of_checkpoint(self.placed.folder)
        try:
            sizes.output(settings.height, settings.width, settings.upsampling_ratio)
        except UserError as error:
            raise UserError(
                f"{self.name}: {error} --height, --width and --upsampling-ratio set others than the benchmark's."
            ) from error
        processor = self.placed.load_processor()
        tokens = reserved_tokens(processor)
        for record in records:
            check_text(record.prompt, f"{record.where}: the prompt", tokens)
        return processor

    def load(self) -> tuple["UniARForConditionalGeneration", "UniARVisualDecoder"]:
        section = replace(ModelSection(path=self.name), dtype=self.dtype, attention=self.placed.attention)
        return self.named.load(section).to(self.placed.device).eval(), self.placed.load_decoder()
