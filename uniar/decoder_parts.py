"""The visual decoder's parts on disk (docs/checkpoint-format.md, 1): loading them exactly, and what the text encoders
make of the one prompt."""

import gc
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin, StableDiffusion3Pipeline
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    CLIPTextModelWithProjection,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5EncoderModel,
)

from uniar.checkpoint import refusals, require_exact_tensors
from uniar.errors import UserError

DECODER_PROMPT = "Please reconstruct this image and restore all the details."
"""The one prompt that the decoder was trained with, positive and negative alike."""

T5_TOKENS = 256
"""What diffusers pads the prompt to for T5, whatever its tokenizer's `model_max_length`."""
LENGTH_KEY = "max_sequence_length"
"""In tokenizer_3/tokenizer_config.json: what a small checkpoint pads it to instead. Diffusers passes over it."""
TEXT_ENCODERS = {
    "text_encoder": CLIPTextModelWithProjection,
    "text_encoder_2": CLIPTextModelWithProjection,
    "text_encoder_3": T5EncoderModel,
}
# transformers 5's T5 tokenizer lays its own normalizer over tokenizer.json; the file alone says what the weights saw.
TOKENIZERS = {"tokenizer": AutoTokenizer, "tokenizer_2": AutoTokenizer, "tokenizer_3": PreTrainedTokenizerFast}


def load_exactly(model_class: type[ModelMixin | PreTrainedModel], folder: Path, **kwargs: Any) -> nn.Module:
    """`from_pretrained` of a diffusers or transformers model. Raises UserError for a tensor that it would make up."""
    with refusals(f"{folder} does not load"):
        model, info = model_class.from_pretrained(
            folder, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs
        )
    require_exact_tensors(folder, model, info)
    return model


def load_tokenizer(loader: type[AutoTokenizer | PreTrainedTokenizerBase], folder: Path) -> PreTrainedTokenizerBase:
    """Raises UserError for files that make no tokenizer, or one without words."""
    with refusals(f"{folder} holds no tokenizer that loads"):
        tokenizer = loader.from_pretrained(folder)
        tokenizer([DECODER_PROMPT, "a"], padding=True)
        return tokenizer


@torch.no_grad()
def encode_prompt(pipeline: Path, device: torch.device | str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The constant prompt's embeddings (1, tokens, joint dim) and pooled ones (1, pooled dim), as SD3 makes them.

    Their length is that of CLIP's tokenizer, then T5_TOKENS or what the checkpoint has under LENGTH_KEY.
    """
    encoders = {
        name: load_exactly(encoder, pipeline / name, dtype=dtype).to(device) for name, encoder in TEXT_ENCODERS.items()
    }
    tokenizers = {name: load_tokenizer(loader, pipeline / name) for name, loader in TOKENIZERS.items()}
    sd3 = StableDiffusion3Pipeline(transformer=None, scheduler=None, vae=None, **encoders, **tokenizers)
    embeds, _, pooled, _ = sd3.encode_prompt(
        DECODER_PROMPT,
        None,
        None,
        device=device,
        do_classifier_free_guidance=False,
        max_sequence_length=t5_length(pipeline / "tokenizer_3", tokenizers["tokenizer_3"]),
    )
    # Modules hold reference cycles; without this the T5 encoder would stay until some later collection.
    del sd3, encoders
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
    return embeds, pooled


def t5_length(folder: Path, tokenizer: PreTrainedTokenizerBase) -> int:
    """What the constant prompt is padded to for T5. Raises UserError for a checkpoint that says nonsense."""
    length = tokenizer.init_kwargs.get(LENGTH_KEY, T5_TOKENS)
    if type(length) is not int or length < 1:
        raise UserError(
            f"{folder / 'tokenizer_config.json'} says {LENGTH_KEY} {length!r}; it must be a whole number, 1 or more."
        )
    return length
