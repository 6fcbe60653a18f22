"""Small UniAR checkpoints with random weights, in the released layout (docs/checkpoint-format.md, 1), built from code
alone.

They are for trying the whole path (tests, configs/nano.yaml, benchmarks), not for good pictures.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from tokenizers import Tokenizer
from transformers import GenerationConfig
from transformers.utils import logging

from uniar.configuration_uniar import UniARConfig, UniARVisionConfig
from uniar.errors import UserError, did_you_mean
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.modeling_vision import UniARVisionModel
from uniar.presets.decoder import DecoderSize, write_decoder
from uniar.presets.processor import MODEL_MAX_LENGTH, corpus, write_processor
from uniar.presets.weights import centre_rows, randomize
from uniar.reading.machine import CACHE_VARIABLE

DEFAULT_CACHE = "models"
STAMP_FILE = ".preset.json"

MERGE = 2


@dataclass(frozen=True)
class Preset:
    """The sizes of one checkpoint. Everything not named here is as in the released model's configuration."""

    image_size: int
    """side in pixels that the preset is meant for; other sizes work too"""
    vocabulary: int
    text_hidden: int
    text_layers: int
    text_heads: int
    key_value_heads: int
    visual_decoder_depth: int
    patch_size: int
    vision_hidden: int
    vision_depth: int
    deepstack: tuple[int, ...]
    bsq_dim: int
    bsq_hidden: int
    decoder: DecoderSize

    @property
    def head_dim(self) -> int:
        return self.text_hidden // self.text_heads


PRESETS = {
    # 64×64 pixels are 4 visual tokens of 96 bits. Built in about a second, 3 MB.
    "nano": Preset(
        image_size=64,
        vocabulary=512,
        text_hidden=64,
        text_layers=3,
        text_heads=4,
        key_value_heads=2,
        visual_decoder_depth=1,
        patch_size=16,
        vision_hidden=32,
        vision_depth=3,
        deepstack=(0, 1),
        bsq_dim=8,
        bsq_hidden=48,
        decoder=DecoderSize(
            layers=2,
            heads=2,
            head_dim=16,
            latent_channels=4,
            vae_channels=(16, 16, 16, 16),
            joint_dim=32,
            max_side=32,
        ),
    ),
}


def preset_path(name: str, seed: int = 0, cache_dir: str | Path | None = None) -> Path:
    """The folder of a preset, built at its first use as `<cache>/<name>-<seed>`.

    The cache is `cache_dir`, else $UNIAR_CACHE, else `models` in the working directory. A folder that another version
    of this code built is built anew; several processes may ask at once. Raises UserError for an unknown name.
    """
    preset = _preset(name)
    cache = Path(cache_dir or os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE)
    folder = cache / f"{name}-{seed}"
    if _is_current(folder, preset, seed):
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{folder.name}.lock"):
        if not _is_current(folder, preset, seed):
            if (folder / STAMP_FILE).is_file():
                shutil.rmtree(folder)
            build_preset(name, folder, seed)
    return folder


def build_preset(name: str, folder: str | Path, seed: int = 0) -> Path:
    """Writes the checkpoint of preset `name` with the weights of `seed` into `folder`, float32, and returns it.

    The folder appears complete or not at all. The same seed gives the same bytes; the global random state is left as
    it was. Raises UserError for an unknown name, or when `folder` exists and is not empty.
    """
    preset = _preset(name)
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} already exists; a preset is built into a new or an empty folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.parent / f".{folder.name}-{uuid.uuid4().hex}"
    unfinished.mkdir()
    try:
        with torch.random.fork_rng(devices=[]), _without_progress_bars():
            _write(preset, unfinished, seed)
        (unfinished / STAMP_FILE).write_text(json.dumps(_stamp(preset, seed)), encoding="utf-8")
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise UserError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}.{did_you_mean(name, PRESETS)}")
    return PRESETS[name]


def _is_current(folder: Path, preset: Preset, seed: int) -> bool:
    stamp = folder / STAMP_FILE
    return stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == _stamp(preset, seed)


def _stamp(preset: Preset, seed: int) -> dict[str, str | int]:
    """What a built folder depends on: the preset, the seed and the text of the modules that build it."""
    digest = hashlib.sha256(repr(preset).encode())
    for module in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(module.read_bytes())
    return {"seed": seed, "sha256": digest.hexdigest()}


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Saving a model of a few layers needs no bar of its shards."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _write(preset: Preset, folder: Path, seed: int) -> None:
    tokenizer = write_processor(
        folder,
        vocabulary=preset.vocabulary,
        sentences=corpus(),
        patch_size=preset.patch_size,
        merge_size=MERGE,
        max_pixels=(8 * preset.image_size) ** 2,
    )
    vision = UniARVisionModel(_vision_config(preset))
    randomize(vision, seed, "vision", {"pos_embed": 0.3})
    for name, module in vision.named_modules():
        if name.startswith("bsq_output_proj") and name.endswith("linear_fc2"):
            centre_rows(module.weight)
    vision.save_pretrained(folder / "bsq_encoder")

    model = UniARForConditionalGeneration(_config(preset, tokenizer))
    # A bit's two logits are about 0.7 apart: far from greedy, far from uniform. Embeddings that are small beside what
    # the layers add let the prompt move them, by about 0.16, so a reward can teach the model what a word means.
    randomize(model, seed, "ar", {"embed_tokens": 0.3, "output_layer_vistok": 0.5})
    model.model.visual.load_state_dict(vision.state_dict())
    ends = [model.config.text_config.eos_token_id, model.config.text_config.bos_token_id]
    model.generation_config = GenerationConfig(bos_token_id=ends[1], eos_token_id=ends, pad_token_id=ends[1])
    model.save_pretrained(folder)
    write_decoder(folder, preset.decoder, preset.vision_hidden * (1 + len(preset.deepstack)), seed)


def _vision_config(preset: Preset) -> UniARVisionConfig:
    return UniARVisionConfig(
        depth=preset.vision_depth,
        hidden_size=preset.vision_hidden,
        num_heads=2,
        intermediate_size=2 * preset.vision_hidden,
        patch_size=preset.patch_size,
        spatial_merge_size=MERGE,
        temporal_patch_size=2,
        out_hidden_size=preset.text_hidden,
        num_position_embeddings=(preset.image_size // preset.patch_size) ** 2,
        deepstack_visual_indexes=list(preset.deepstack),
        bsq_dim=preset.bsq_dim,
        bsq_hidden_dim=preset.bsq_hidden,
        vistok_pred=True,
        vistok_pred_layernorm=True,
    )


def _config(preset: Preset, tokenizer: Tokenizer) -> UniARConfig:
    quarter = preset.head_dim // 8
    return UniARConfig(
        text_config={
            "vocab_size": preset.vocabulary,
            "hidden_size": preset.text_hidden,
            "intermediate_size": 2 * preset.text_hidden,
            "num_hidden_layers": preset.text_layers,
            "num_attention_heads": preset.text_heads,
            "num_key_value_heads": preset.key_value_heads,
            "head_dim": preset.head_dim,
            "max_position_embeddings": MODEL_MAX_LENGTH,
            "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
            "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5000000.0,
                "mrope_section": [preset.head_dim // 2 - 2 * quarter, quarter, quarter],
                "mrope_interleaved": True,
            },
        },
        vision_config=_vision_config(preset).to_dict(),
        image_token_id=tokenizer.token_to_id("<|image_pad|>"),
        video_token_id=tokenizer.token_to_id("<|video_pad|>"),
        vision_start_token_id=tokenizer.token_to_id("<|vision_start|>"),
        vision_end_token_id=tokenizer.token_to_id("<|vision_end|>"),
        tie_word_embeddings=False,
        vistok_pred=True,
        vistok_pred_layernorm=True,
        visual_transformer_decoder=True,
        visual_transformer_decoder_depth=preset.visual_decoder_depth,
    )
