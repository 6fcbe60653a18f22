"""A recipe's `model` section → the policy, its processor and its reference."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from rl.config.model import LoraSection, ModelSection
from rl.config.sections import Recipe
from rl.episodes.requests import PICTURES, TurnKind
from rl.policy.reference import AdapterCopy, AdapterOff, FrozenCopy, Reference
from uniar.checkpoint import require_model_type, resolve_checkpoint
from uniar.configuration_uniar import UniARConfig
from uniar.errors import UserError, did_you_mean
from uniar.inspection import inspect_checkpoint
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.placement import DTYPES
from uniar.presets.build import preset_path

_PROJECTIONS = r"\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
LORA_TARGETS = rf".*(language_model\.layers|visual_decoder){_PROJECTIONS}"
"""All projections of the text layers and the visual decoder; the vision tower and the heads stay as they are."""
TEXT_LORA_TARGETS = rf".*language_model\.layers{_PROJECTIONS}"
"""The same where nothing is drawn, so that no gradient would reach the visual decoder."""


def checkpoint_of(section: ModelSection) -> Path:
    """The checkpoint folder that a recipe starts from; a preset is built at first use. Raises UserError."""
    folder = preset_path(section.preset, section.seed) if section.preset else resolve_checkpoint(section.path or "")
    inspect_checkpoint(folder, decoder=True)
    return folder


def load_config(folder: Path) -> UniARConfig:
    """The AR model's config, without its weights. Raises UserError for another model's, or one that cannot draw."""
    require_model_type(folder, UniARConfig.model_type)
    config = UniARConfig.from_pretrained(folder)
    if not config.vistok_pred:
        raise UserError(
            f"{folder} has vistok_pred false: it reads images but has no head to draw them, nothing to train."
        )
    return config


def load_policy(section: ModelSection, folder: Path) -> UniARForConditionalGeneration:
    """The AR model of `folder` in the recipe's dtype and attention. Raises UserError for an incomplete checkpoint."""
    model = UniARForConditionalGeneration.from_pretrained(
        folder, dtype=DTYPES[section.dtype], attn_implementation=section.attention
    )
    for module in model.modules():
        # With dropout the update would not see the policy that drew.
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return model


def base_model(policy: Any) -> Any:
    """The model under an adapter, or the model itself."""
    return policy.get_base_model() if hasattr(policy, "get_base_model") else policy


def trainable(
    model: UniARForConditionalGeneration, lora: LoraSection | None, turns: Collection[TurnKind] = PICTURES
) -> UniARForConditionalGeneration | PeftModel:
    """Freezes what training leaves alone (docs/checkpoint-format.md, 9); with `lora` only its adapters are trained.

    turns: what is trained. No gradient of text reaches the visual decoder and its head, none of pictures the final norm
    and `lm_head`.
    """
    if lora is None:
        model.set_trainable(text="text" in turns)
        if "picture" not in turns:
            for unused in (*model.visual_decoder_layers, model.output_layer_vistok):
                unused.requires_grad_(False)
        return model
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for target in lora.target_modules or ():
        if not any(f".{layer}".endswith(f".{target}") for layer in layers):
            hint = did_you_mean(target, sorted({layer.rpartition(".")[2] for layer in layers}))
            raise UserError(
                f"model.lora.target_modules has {target!r}, which no linear layer of the model is called.{hint}"
            )
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft divides it by r, whole or not
        lora_dropout=0.0,  # else the update would not see the policy that drew
        target_modules=lora.target_modules or (LORA_TARGETS if "picture" in turns else TEXT_LORA_TARGETS),
        bias="none",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(
            f"model.lora.target_modules {lora.target_modules} match no layer of the model: {error}"
        ) from error


def check_adapters(section: ModelSection, folder: Path) -> None:
    """Raises UserError for adapters that the model of `folder` cannot have. Loads no weight."""
    if section.lora is not None and section.lora.target_modules is not None:
        with torch.device("meta"):
            trainable(UniARForConditionalGeneration._from_config(load_config(folder)), section.lora)


def reference_for(recipe: Recipe, folder: Path) -> Reference | None:
    """None without a KL term; under LoRA the adapters switched off, or older ones; else a second model."""
    section = recipe.model
    if not recipe.needs_reference:
        return None
    if section.lora is not None:
        return AdapterOff() if recipe.algorithm.reference_refresh is None else AdapterCopy()
    return FrozenCopy(load_policy(section, folder), keep_on_device=section.reference_device == "gpu")
