"""Tokenizer and processor files of a preset, made from the sentences below; nothing is downloaded.

The files have the layout that transformers 4.57 writes for a Qwen3-VL processor; transformers 5 reads it too.
"""

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import Qwen2Tokenizer

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "white", "grey", "cyan")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "line", "dot")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
PLACES = ("left of", "right of", "above", "below", "in front of", "behind", "next to", "on top of")
PHRASES = (
    "What is in this image? Answer in one sentence.",
    "Describe the picture in detail. How many are there, and which colour do they have?",
    "a photo of a cat and a dog in the garden, soft light, high quality",
    "a small house by the sea at night, watercolour painting",
    "a sign that says 'open', a poster with the words 'hello world'",
    "Make the background darker. Remove the object. Replace it with another one.",
    "<image_gen> generate image ",
    "system user assistant You are a helpful assistant. yes no true false",
)

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Qwen's special tokens, in the order of their ids."""

CHAT_TEMPLATE = """\
{%- macro part(item) -%}
{%- if item is string -%}
{{- item -}}
{%- elif item.type == 'image' or 'image' in item or 'image_url' in item -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif item.type == 'video' or 'video' in item -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif 'text' in item -%}
{{- item.text -}}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for item in message.content -%}
{{- part(item) -}}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
"""docs/checkpoint-format.md, 6: no default system message."""

MODEL_MAX_LENGTH = 32768


def corpus() -> list[str]:
    """The sentences that every tokenizer of a preset is trained on."""
    sentences = [f"a {colour} {shape}" for colour, shape in itertools.product(COLOURS, SHAPES)]
    sentences += [
        f"{number} {colour} {shape}s" for number, colour, shape in itertools.product(NUMBERS, COLOURS, SHAPES)
    ]
    sentences += [f"a {shape} {place} a {other}" for place in PLACES for shape, other in itertools.pairwise(SHAPES)]
    sentences += [f"<image_gen> generate image {side} {side}" for side in range(1, 33)]
    return sentences + [*PHRASES] * 20


def train_tokenizer(vocabulary: int, sentences: Iterable[str]) -> Tokenizer:
    """A byte-level BPE of `vocabulary` entries with Qwen2's pre-tokenization, trained on `sentences`; SPECIAL_TOKENS
    take the last ids.

    Raises ValueError when the sentences are too few to fill the vocabulary.
    """
    pipeline = Qwen2Tokenizer().backend_tokenizer
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = pipeline.normalizer
    tokenizer.pre_tokenizer = pipeline.pre_tokenizer
    tokenizer.decoder = pipeline.decoder
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    if tokenizer.get_vocab_size() != vocabulary:
        raise ValueError(f"the sentences give {tokenizer.get_vocab_size()} tokens, not the {vocabulary} asked for.")
    return tokenizer


def write_processor(
    folder: Path,
    *,
    vocabulary: int,
    sentences: Iterable[str],
    patch_size: int,
    merge_size: int,
    max_pixels: int,
    min_pixels: int | None = None,
) -> Tokenizer:
    """Writes the processor files into `folder` and returns the tokenizer.

    Images are resized to multiples of patch × merge, from `min_pixels` (None: one visual token) up to `max_pixels`
    pixels.
    """
    tokenizer = train_tokenizer(vocabulary, sentences)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))  # vocab.json and merges.txt
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")

    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    write_json(folder / "added_tokens.json", ids)
    write_json(
        folder / "special_tokens_map.json",
        {
            "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
            **{role: added_token(token, special=None) for role, token in named.items()},
        },
    )
    write_json(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": {str(ids[token]): added_token(token) for token in SPECIAL_TOKENS},
            "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "extra_special_tokens": {},
            "model_max_length": MODEL_MAX_LENGTH,
            **named,
            "processor_class": "Qwen3VLProcessor",
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    pixels = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "merge_size": merge_size,
        "patch_size": patch_size,
        "processor_class": "Qwen3VLProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": max_pixels, "shortest_edge": min_pixels or (patch_size * merge_size) ** 2},
        "temporal_patch_size": 2,
    }
    write_json(folder / "preprocessor_config.json", pixels | {"image_processor_type": "Qwen2VLImageProcessorFast"})
    frames = {"do_sample_frames": True, "fps": 2, "max_frames": 768, "min_frames": 4, "return_metadata": False}
    write_json(
        folder / "video_preprocessor_config.json", pixels | frames | {"video_processor_type": "Qwen3VLVideoProcessor"}
    )
    return tokenizer


def added_token(content: str, *, special: bool | None = True, normalized: bool = False) -> dict[str, Any]:
    """A special token as tokenizer config files spell it; `special=None` leaves that key out."""
    entry = {"content": content, "lstrip": False, "normalized": normalized, "rstrip": False, "single_word": False}
    return entry if special is None else {**entry, "special": special}


def write_json(file: Path, content: Any) -> None:
    """Writes `content` with two spaces of indent, keys sorted, as transformers does."""
    file.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
