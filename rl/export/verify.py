"""Is an export the model that was trained? Loads it as its model card does and compares logits."""

import gc
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import Module
from transformers import AutoProcessor

from rl.algorithm.guidance import GuidanceSettings
from rl.checkpoint.layout import ADAPTER_CONFIG
from rl.checkpoint.tensor_files import averaged_weights
from rl.checkpoint.zero_shards import ZeroShards
from rl.policy.replay import Branch, replay
from uniar.errors import UserError
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.processing import build_visual_prompt
from uniar.weight_files import has_weights

PROMPT = "a red kettle on a wooden table"
TOLERANCE = 1e-5
"""of the largest logit; both sides hold the same rounded weights, so what remains is the order of additions"""


def verify(
    folder: Path,
    checkpoint: Path,
    source: Path,
    dtype: torch.dtype,
    base: str | None = None,
    *,
    average: bool = False,
) -> float:
    """The largest difference in logits between an export and the checkpoint it was made of, text and visual bits.

    The checkpoint is loaded by the libraries that wrote it (transformers, peft), or from its ZeRO shards; one model is
    in memory at a time. `base`: `folder` is an adapter of that model. `average`: it was made of the averaged weights.
    Raises UserError past a relative `TOLERANCE`.
    """
    processor = AutoProcessor.from_pretrained(base or folder)
    exported = _logits(_exported_model(folder, dtype, base), processor)
    gc.collect()
    trained = _logits(_trained_model(checkpoint, source, dtype, average), processor)
    worst = 0.0
    for name, expected in trained.items():
        difference = (exported[name] - expected).abs().max().item()
        allowed = TOLERANCE * expected.abs().max().item()
        if not difference <= allowed:
            raise UserError(
                f"{folder} is not what {checkpoint} holds: its {name} logits differ by up to {difference:.2e}, "
                f"where {allowed:.2e} is rounding."
            )
        worst = max(worst, difference)
    return worst


def _exported_model(folder: Path, dtype: torch.dtype, base: str | None) -> Module:
    """As the card's lines load it (rl/export/model_card.py)."""
    load = partial(UniARForConditionalGeneration.from_pretrained, torch_dtype=dtype, attn_implementation="sdpa")
    return load(folder) if base is None else PeftModel.from_pretrained(load(base), folder).merge_and_unload()


def _trained_model(checkpoint: Path, source: Path, dtype: torch.dtype, average: bool) -> UniARForConditionalGeneration:
    load = UniARForConditionalGeneration.from_pretrained
    if (checkpoint / ADAPTER_CONFIG).is_file():
        model = PeftModel.from_pretrained(load(source, torch_dtype=dtype), checkpoint)
    elif has_weights(checkpoint):
        model = load(checkpoint, torch_dtype=dtype)
    else:
        model = load(source, torch_dtype=dtype)
        _put(ZeroShards(checkpoint), model)
    if average:
        _put(averaged_weights(checkpoint), model)
    return model.merge_and_unload() if isinstance(model, PeftModel) else model


def _put(weights: Mapping[str, Tensor], model: Module) -> None:
    for name, tensor in model.state_dict().items():
        if name in weights:
            tensor.copy_(weights[name])


@torch.no_grad()
def _logits(model: UniARForConditionalGeneration, processor: Any) -> dict[str, Tensor]:
    """Of a text, and of random bits of a small drawing after it."""
    model.eval()
    ids = processor.tokenizer(PROMPT, return_tensors="pt").input_ids
    side = 2 * model.config.vision_config.pixels_per_token
    prompt = build_visual_prompt([PROMPT], model, processor, height=side, width=side)
    shape = (1, prompt.new_tokens, *model.config.vision_config.code_shape)
    bits = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    branch = Branch.of(prompt, [0], model.config.image_token_id)
    gaps = replay(model, bits, branch, None, GuidanceSettings())
    return {"text": model(input_ids=ids).logits.float(), "visual": gaps.cond}
