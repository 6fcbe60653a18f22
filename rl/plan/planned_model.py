"""What a recipe trains and decodes with, as config files tell: modules on the meta device, shapes without memory.

The released checkpoints can be planned for before they are downloaded: their sizes are written down in released.json
(docs/checkpoint-format.md, 2; the text model is Qwen3-8B's size, the decoder Stable Diffusion 3.5 Medium's).
"""

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from huggingface_hub import snapshot_download
from torch import nn

from rl.checkpoint.layout import MODEL_CONFIG
from rl.config.model import ModelSection
from rl.episodes.requests import PICTURES, TurnKind
from rl.policy.loading import trainable
from uniar.checkpoint import refusals
from uniar.configuration_uniar import UniARConfig
from uniar.errors import UserError
from uniar.modeling_sd3 import SD3Transformer2DModelWithSigLIP
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.placement import DTYPES
from uniar.presets.build import preset_path
from uniar.reading.files import read_object

RELEASED = ("ShareLab-SII/UniAR-SFT", "ShareLab-SII/UniAR-RL")
SIZES = Path(__file__).with_name("released.json")


@dataclass(frozen=True)
class PlannedModel:
    """Configs, and where they come from."""

    config: UniARConfig
    transformer: dict[str, Any]
    vae: dict[str, Any]
    origin: str

    def policy(self, section: ModelSection, turns: Collection[TurnKind] = PICTURES) -> nn.Module:
        """The AR model as the recipe trains it for such turns (types, frozen parts, adapters), on the meta device."""
        config = UniARConfig.from_dict(self.config.to_dict())
        attention = "eager" if section.attention == "eager" else "sdpa"  # flash-attn holds what fused sdpa does
        with self._refusals(), torch.device("meta"):
            model = UniARForConditionalGeneration._from_config(
                config, dtype=DTYPES[section.dtype], attn_implementation=attention
            )
            return trainable(model, section.lora, turns)

    def is_stored_as(self, dtype: torch.dtype) -> bool:
        """Whether the checkpoint's files have weights of this type, as its config says."""
        return getattr(self.config, "dtype", None) in (dtype, str(dtype).removeprefix("torch."))

    def sd3_transformer(self, dtype: torch.dtype) -> SD3Transformer2DModelWithSigLIP:
        with self._refusals(), torch.device("meta"), _plain_dtype(dtype):
            return SD3Transformer2DModelWithSigLIP.from_config(self.transformer).requires_grad_(False)

    def autoencoder(self, dtype: torch.dtype) -> AutoencoderKL:
        with self._refusals(), torch.device("meta"), _plain_dtype(dtype):
            return AutoencoderKL.from_config(self.vae).requires_grad_(False)

    def _refusals(self) -> AbstractContextManager[None]:
        return refusals(f"the configs of {self.origin} do not describe a model")


def planned_model(section: ModelSection) -> PlannedModel:
    """The configs of a recipe's model: a folder's (its config.json files are enough), a preset's, those that the hub
    has or had, or the released sizes written down here. Raises UserError when there are none."""
    if section.preset is not None:
        return _from_folder(preset_path(section.preset, section.seed), f"preset {section.preset}")
    folder = Path(section.path)
    if folder.is_dir():
        return _from_folder(folder, str(folder))
    try:
        folder = Path(
            snapshot_download(section.path, allow_patterns=[f"{inside}{MODEL_CONFIG}" for inside in ("", "*/", "*/*/")])
        )
    except Exception as error:  # no network, no such name, no right: all mean that the hub's configs are not to be had
        if section.path in RELEASED:
            return _released(section.path)
        raise UserError(
            f"model.path {section.path} is not a folder, and its configs could not be had from the hub; put its "
            "config.json files into a folder, as they lie in the checkpoint."
        ) from error
    return _from_folder(folder, section.path)


def _released(name: str) -> PlannedModel:
    origin = f"{name}, whose config files are not here: sizes as released, written down in rl/plan/released.json"
    sizes = read_object(SIZES)
    return PlannedModel(UniARConfig(**sizes["config"]), sizes["transformer"], sizes["vae"], origin)


def _from_folder(folder: Path, origin: str) -> PlannedModel:
    config = read_object(folder / MODEL_CONFIG)
    if config.get("model_type") != UniARConfig.model_type:
        raise UserError(f"{folder / MODEL_CONFIG} is not a UniAR model's.")
    files = [folder / "sd3_transformer" / MODEL_CONFIG, folder / "sd3_pipeline" / "vae" / MODEL_CONFIG]
    if all(file.is_file() for file in files):
        transformer, vae = map(read_object, files)
    else:
        origin += "; it has no decoder configs, so the decoder is the released one's size"
        transformer, vae = (read_object(SIZES)[part] for part in ("transformer", "vae"))
    with refusals(f"{folder / MODEL_CONFIG} does not describe a model"):
        return PlannedModel(UniARConfig.from_dict(config), transformer, vae, origin)


@contextmanager
def _plain_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Modules made inside have weights of this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
