"""The model of a benchmark: found and looked over first, loaded where something is left to draw."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from rl.config.model import ModelSection
from rl.data.prompts import PromptRecord
from rl.policy.evaluated import NamedModel, named_model
from rl.policy.samples import DrawSettings
from uniar.checkpoint import decoder_weight_files, load_processor
from uniar.decoder_sizes import DecoderSizes
from uniar.errors import UserError
from uniar.fingerprint import fingerprint
from uniar.inspection import inspect_checkpoint
from uniar.placement import DTYPES, choose_precision
from uniar.presets.build import preset_path
from uniar.reading.prompt_text import check_text, reserved_tokens
from uniar.weight_files import weight_files

if TYPE_CHECKING:
    from uniar.modeling_decoder import UniARVisualDecoder
    from uniar.modeling_uniar import UniARForConditionalGeneration

_PRESET = "preset:"


@dataclass(frozen=True)
class BenchmarkModel:
    """A checkpoint that can draw, on one device."""

    name: str
    """as the user called it"""
    named: NamedModel
    device: torch.device
    dtype: str
    attention: str

    @classmethod
    def find(cls, name: str, device: torch.device, dtype: str, attention: str) -> "BenchmarkModel":
        """An exported folder, a hub id, a run's checkpoint-N, an adapter, or preset:NAME. Raises UserError for one that
        is not there or lacks a part."""
        preset = name.removeprefix(_PRESET)
        named = named_model(name) if preset == name else NamedModel(preset_path(preset))
        inspect_checkpoint(named.source, decoder=True)
        return cls(name, named, device, *choose_precision(device, dtype, attention))

    @property
    def fingerprint(self) -> str:
        """What tells its weights apart."""
        source, trained = self.named.source, self.named.trained
        files = fingerprint(source, [*weight_files(source), *decoder_weight_files(source)])
        if trained is None:
            return files
        own = [file for file in trained.rglob("*") if file.suffix in (".safetensors", ".pt", ".bin")]
        return f"{files}+{fingerprint(trained, own)}"

    def check(self, records: Sequence[PromptRecord], settings: DrawSettings) -> Any:
        """Its processor. Raises UserError for a size that it does not draw and for a prompt with one of its tokens."""
        sizes = DecoderSizes.of_checkpoint(self.named.source)
        try:
            sizes.output(settings.height, settings.width, settings.upsampling_ratio)
        except UserError as error:
            raise UserError(
                f"{self.name}: {error} --height, --width and --upsampling-ratio set others than the benchmark's."
            ) from error
        processor = load_processor(self.named.source)
        tokens = reserved_tokens(processor)
        for record in records:
            check_text(record.prompt, f"{record.where}: the prompt", tokens)
        return processor

    def load(self) -> tuple["UniARForConditionalGeneration", "UniARVisualDecoder"]:
        from uniar.modeling_decoder import UniARVisualDecoder

        section = replace(ModelSection(path=self.name), dtype=self.dtype, attention=self.attention)
        decoder = UniARVisualDecoder.from_pretrained(
            self.named.source, device=self.device, torch_dtype=DTYPES[self.dtype]
        )
        return self.named.load(section).to(self.device).eval(), decoder
