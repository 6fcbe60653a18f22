"""The visual decoder's parts on disk (spec section 1): whether they are there, loading them exactly, and what the text
encoders make of the one prompt."""

import gc
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5EncoderModel,
)

from uniar.errors import UserError

DECODER_PROMPT = "Please reconstruct this image and restore all the details."
"""The one prompt that the decoder was trained with, positive and negative alike."""

_T5_TOKENS = 256
_TEXT_ENCODERS = {
    "text_encoder": CLIPTextModelWithProjection,
    "text_encoder_2": CLIPTextModelWithProjection,
    "text_encoder_3": T5EncoderModel,
}
# transformers 5's T5 tokenizer lays its own normalizer over tokenizer.json; the file alone says what the weights saw.
_TOKENIZERS = {"tokenizer": AutoTokenizer, "tokenizer_2": AutoTokenizer, "tokenizer_3": PreTrainedTokenizerFast}
# part → (a file it must have, the diffusers class that this file must name)
_PARTS = {
    "bsq_encoder": ("config.json", None),
    "sd3_transformer": ("config.json", "SD3Transformer2DModelWithSigLIP"),
    "sd3_pipeline/vae": ("config.json", "AutoencoderKL"),
    "sd3_pipeline/scheduler": ("scheduler_config.json", "FlowMatchEulerDiscreteScheduler"),
    **{f"sd3_pipeline/{name}": ("config.json", None) for name in _TEXT_ENCODERS},
    "sd3_pipeline/tokenizer": ("tokenizer_config.json", None),
    "sd3_pipeline/tokenizer_2": ("tokenizer_config.json", None),
    "sd3_pipeline/tokenizer_3": ("tokenizer.json", None),
}


def require_parts(folder: Path) -> None:
    """Raises UserError for the first part that is missing or of another kind, naming it and where it was expected."""
    for part, (file_name, class_name) in _PARTS.items():
        file = folder / part / file_name
        if not file.is_file():
            raise UserError(f"the visual decoder needs {part}, and {file} does not exist.")
        if class_name is not None:
            try:
                found = json.loads(file.read_text())["_class_name"]
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
                raise UserError(f"{file} is no diffusers configuration ({type(error).__name__}: {error}).") from error
            if found != class_name:
                raise UserError(f"{file} says _class_name {found!r}; it must be {class_name!r}.")
        if file_name == "config.json" and not any(file.parent.glob("*.safetensors")):
            raise UserError(
                f"the visual decoder needs weights for {part}, and {file.parent} has no *.safetensors file."
            )


def load_exactly(model_class: type, folder: Path, **kwargs: Any) -> nn.Module:
    """`from_pretrained` of a diffusers or transformers model. Raises UserError for a tensor that it would make up."""
    try:
        model, info = model_class.from_pretrained(
            folder, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs
        )
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder} does not load: {error}") from error
    if info["mismatched_keys"]:
        name, found, expected = sorted(info["mismatched_keys"])[0]
        raise UserError(f"{folder}: tensor {name} has shape {tuple(found)}; the config makes it {tuple(expected)}.")
    for keys, fault in (("missing_keys", "is missing from the weights"), ("unexpected_keys", "belongs to no module")):
        if names := sorted(info[keys]):
            others = f", and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{folder}: tensor {names[0]} {fault}{others}.")
    return model


def _load_tokenizer(loader: type, folder: Path) -> PreTrainedTokenizerBase:
    try:
        return loader.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises nothing more specific for a broken file
        raise UserError(f"{folder} holds no tokenizer that loads ({type(error).__name__}: {error}).") from error


@torch.no_grad()
def encode_prompt(pipeline: Path, device: torch.device | str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The constant prompt's embeddings (1, tokens, joint dim) and pooled ones (1, pooled dim), as SD3 makes them.

    Their length is the checkpoint's: CLIP's tokenizer length, then T5's up to 256.
    """
    encoders = {
        name: load_exactly(encoder, pipeline / name, dtype=dtype).to(device) for name, encoder in _TEXT_ENCODERS.items()
    }
    tokenizers = {name: _load_tokenizer(loader, pipeline / name) for name, loader in _TOKENIZERS.items()}
    sd3 = StableDiffusion3Pipeline(transformer=None, scheduler=None, vae=None, **encoders, **tokenizers)
    embeds, _, pooled, _ = sd3.encode_prompt(
        DECODER_PROMPT,
        None,
        None,
        device=device,
        do_classifier_free_guidance=False,
        max_sequence_length=min(_T5_TOKENS, tokenizers["tokenizer_3"].model_max_length),
    )
    # Modules hold reference cycles; without this the T5 encoder would stay until some later collection.
    del sd3, encoders
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
    return embeds, pooled
