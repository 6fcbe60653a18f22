"""Will a checkpoint load? Found out before any weight is read: files that are whole JSON and wrong make no model.

Models are built from their configurations without memory and compared with the headers of the weight files; the small
parts, tokenizers, processor and scheduler, are loaded and tried.
"""

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ModelMixin
from PIL import Image
from torch import nn
from transformers import PreTrainedModel

from uniar.checkpoint import (
    load_processor,
    load_scheduler,
    refusals,
    require_exact_tensors,
    require_model_type,
    require_parts,
)
from uniar.configuration_uniar import UniARConfig
from uniar.decoder_parts import TEXT_ENCODERS, TOKENIZERS, load_tokenizer, t5_length
from uniar.errors import UserError
from uniar.modeling_sd3 import SD3Transformer2DModelWithSigLIP
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.modeling_vision import UniARVisionModel
from uniar.reading.files import read_object
from uniar.weight_files import DIFFUSERS, MODEL, stored_tensors

_POINTER, _POINTER_BYTES = b"version https://git-lfs", 1024
_DECODER_MODELS = {
    "bsq_encoder": UniARVisionModel,
    "sd3_transformer": SD3Transformer2DModelWithSigLIP,
    "sd3_pipeline/vae": AutoencoderKL,
    **{f"sd3_pipeline/{name}": model for name, model in TEXT_ENCODERS.items()},
}


def inspect_checkpoint(folder: Path, *, decoder: bool) -> None:
    """Raises UserError, naming the file, for a checkpoint that would not load or whose parts do not fit together. What
    was found good is not looked at again while its files stay as they are."""
    if not (folder / "config.json").is_file():  # nor is a whole home folder looked through
        require_parts(folder, decoder=decoder)
    files = [(file, file.stat()) for file in sorted(folder.rglob("*")) if file.is_file()]
    for file, stat in files:
        if stat.st_size < _POINTER_BYTES and file.read_bytes().startswith(_POINTER):
            raise UserError(f"{file} is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`.")
    _inspect(folder, decoder, tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in files))


@lru_cache
def _inspect(folder: Path, decoder: bool, state: tuple[tuple[Path, int, int], ...]) -> None:
    require_parts(folder, decoder=decoder)
    config = _inspect_model(UniARForConditionalGeneration, folder)
    if (file := folder / "generation_config.json").is_file():
        read_object(file)
    _inspect_processor(folder, config)
    if decoder:
        for part, model_class in _DECODER_MODELS.items():
            _inspect_model(model_class, folder / part)
        pipeline = folder / "sd3_pipeline"
        tokenizers = {name: load_tokenizer(loader, pipeline / name) for name, loader in TOKENIZERS.items()}
        t5_length(pipeline / "tokenizer_3", tokenizers["tokenizer_3"])
        load_scheduler(pipeline / "scheduler")


def _inspect_model(model_class: type[ModelMixin | PreTrainedModel], folder: Path) -> Any:
    """The configuration in `folder`, which makes the tensors whose shapes are stored there."""
    of_diffusers = issubclass(model_class, ModelMixin)
    own = model_class in (UniARForConditionalGeneration, UniARVisionModel)
    if own:
        require_model_type(folder, model_class.config_class.model_type)
    read_object(folder / "config.json")
    with refusals(f"{folder / 'config.json'} does not describe a model"), torch.device("meta"):
        if of_diffusers:
            config = model_class.load_config(folder)
            model: nn.Module = model_class.from_config(config)
        else:
            config = model_class.config_class.from_pretrained(folder)
            model = model_class._from_config(config)
        tensors = model.state_dict()
    in_layers = re.compile(r"\.(block|layers)\.\d+\.").search  # of a text encoder: more of them than the config says
    stored = stored_tensors(folder, DIFFUSERS if of_diffusers else MODEL)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    found = {
        "mismatched_keys": [
            (name, stored[name].shape, tensor.shape)
            for name, tensor in tensors.items()
            if name in stored and stored[name].shape != tuple(tensor.shape)
        ],
        # Libraries rename some tensors of older files of theirs as they load them; the model's own names are fixed.
        "missing_keys": [name for name in tensors if name not in stored and name not in tied] if own else [],
        "unexpected_keys": [name for name in stored if name not in tensors and (own or in_layers(name))],
    }
    require_exact_tensors(folder, model, found)
    for name, tensor in tensors.items():
        if name in stored and tensor.is_floating_point() and not stored[name].dtype.is_floating_point:
            kind = str(stored[name].dtype).removeprefix("torch.")
            raise UserError(f"{folder}: tensor {name} is stored as {kind}; its numbers would be others.")
    return config


def _inspect_processor(folder: Path, config: UniARConfig) -> None:
    """Tries the processor on a small picture and a word."""
    processor, vision = load_processor(folder), config.vision_config
    side = 2 * vision.pixels_per_token
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}]
    with refusals(f"the processor in {folder} (preprocessor_config.json, tokenizer files, chat template) fails"):
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        picture = Image.new("RGB", (side, side))
        made = processor(text=[text, f"{text} a"], images=[picture] * 2, padding=True, return_tensors="pt")
        ids, pixels, patches = made["input_ids"], made["pixel_values"], made["image_grid_thw"].prod(1).sum().item()
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    if pixels.shape[1] != values:
        raise UserError(
            f"{folder / 'preprocessor_config.json'} makes patches of {pixels.shape[1]} values; the model of "
            f"config.json reads {values}."
        )
    wanted = patches // vision.spatial
    if (tokens := (ids == config.image_token_id).sum().item()) != wanted:
        raise UserError(
            f"the processor in {folder} writes two pictures as {tokens} tokens {config.image_token_id}; the model "
            f"reads them as {wanted} (image_token_id of the config, merge_size of the preprocessor, chat template)."
        )
    if ids.max() >= config.text_config.vocab_size:
        raise UserError(
            f"the tokenizer in {folder} has a token {ids.max()}; config.json's vocab_size is "
            f"{config.text_config.vocab_size}."
        )
